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

    /** Gives fixed scores, and makes a fake clock go on. */
    static final class Runner implements ModelRunner {
        final List<String> log;
        final String name;
        final FakeClock clock;
        final long nanos;
        final float[] scores;
        boolean closed;

        Runner(String name, List<String> log, FakeClock clock, long nanos, float... scores) {
            this.name = name;
            this.log = log;
            this.clock = clock;
            this.nanos = nanos;
            this.scores = scores;
        }

        Runner(float... scores) {
            this("", new ArrayList<String>(), new FakeClock(0), 0, scores);
        }

        @Override
        public TensorSpec input() {
            return floats(1, 2, 2, 3);
        }

        @Override
        public TensorSpec output() {
            return floats(1, scores.length);
        }

        @Override
        public void run(ByteBuffer input, ByteBuffer output) {
            log.add(name);
            clock.now += nanos;
            output.asFloatBuffer().put(scores);
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    static Classifier classifier(String name, ModelRunner runner) {
        return new Classifier(name, 1000, runner, new Preprocessing(0, 1, 0), Labels.NONE);
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
