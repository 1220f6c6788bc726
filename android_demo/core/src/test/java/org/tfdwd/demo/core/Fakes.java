package org.tfdwd.demo.core;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Models, clocks and listeners that do what a test wants. */
final class Fakes {
    private Fakes() {}

    static TensorSpec floats(int... shape) {
        return new TensorSpec(shape, ElementType.FLOAT32, 0, 0);
    }

    /** One colour all over. */
    static Picture plain(int width, int height, int argb) {
        int[] pixels = new int[width * height];
        Arrays.fill(pixels, argb);
        return new Picture(pixels, width, height);
    }

    /** Gives fixed values, and makes a fake clock go on. */
    static final class Runner implements ModelRunner {
        final List<String> log;
        final String name;
        final FakeClock clock;
        final long nanos;
        final TensorSpec output;
        final float[] values;
        boolean closed;

        Runner(String name, List<String> log, FakeClock clock, long nanos, TensorSpec output,
                float... values) {
            this.name = name;
            this.log = log;
            this.clock = clock;
            this.nanos = nanos;
            this.output = output;
            this.values = values;
        }

        /** Of two classes. */
        Runner(String name, List<String> log, FakeClock clock, long nanos) {
            this(name, log, clock, nanos, floats(1, 2), 1, 2);
        }

        Runner(TensorSpec output, float... values) {
            this("", new ArrayList<String>(), new FakeClock(0), 0, output, values);
        }

        Runner(float... scores) {
            this(floats(1, scores.length), scores);
        }

        @Override
        public TensorSpec input() {
            return floats(1, 2, 2, 3);
        }

        @Override
        public TensorSpec output() {
            return output;
        }

        @Override
        public void run(ByteBuffer from, ByteBuffer to) {
            log.add(name);
            clock.now += nanos;
            to.asFloatBuffer().put(values);
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    static Model classifier(String name, ModelRunner runner) {
        return model(name, runner, new Classes(Labels.NONE));
    }

    static Model model(String name, ModelRunner runner, Task task) {
        return new Model(name, 1000, runner, new Preprocessing(0, 1, 0), task);
    }

    /** Goes on by a fixed time with each look at it. */
    static final class FakeClock implements Clock {
        final long tick;
        long now;

        FakeClock(long tick) {
            this.tick = tick;
        }

        @Override
        public long nanos() {
            now += tick;
            return now;
        }
    }

    /** Cancels after some parts. */
    static final class Patience implements Listener {
        final int parts;
        final List<String> heard = new ArrayList<String>();

        Patience(int parts) {
            this.parts = parts;
        }

        @Override
        public void onProgress(int done, int total) {
            heard.add(done + "/" + total);
        }

        @Override
        public boolean isCancelled() {
            return heard.size() >= parts;
        }
    }
}
