package org.tfdwd.demo;

import android.os.Build;
import android.util.Log;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CancellationException;
import org.tensorflow.lite.TensorFlowLite;
import org.tfdwd.demo.core.Benchmark;
import org.tfdwd.demo.core.BenchmarkReport;
import org.tfdwd.demo.core.Bounds;
import org.tfdwd.demo.core.Clock;
import org.tfdwd.demo.core.DemoException;
import org.tfdwd.demo.core.Listener;
import org.tfdwd.demo.core.Model;
import org.tfdwd.demo.core.Phase;
import org.tfdwd.demo.core.Picture;
import org.tfdwd.demo.core.Samples;

/** Times both models, for the screen or for a computer that waits for a file. */
final class BenchmarkRun extends Work {
    /** Of the random picture that all runs see: as large as the picture that a camera app gives. */
    static final int WIDTH = 320;

    static final int HEIGHT = 240;

    private static final String TAG = "tfdwd";

    private final Assets assets;
    private volatile String cancelled;

    /** Samples so far, and how many there will be; 0 of 0 before it is known. */
    int done;

    int total;

    /** What was found last, by phase; empty if nothing was. */
    Map<Phase, BenchmarkReport> reports = Collections.emptyMap();

    /** What went wrong last; null if nothing did. */
    String message;

    BenchmarkRun(Assets assets) {
        this.assets = assets;
    }

    /**
     * Starts; {@link #busy} until it is over.
     *
     * @param threads for LiteRT, within {@link Bounds}, as are the rounds.
     * @param rounds samples of each model.
     * @param output file for the result of the models' own runs as JSON, or for {"error": "why"};
     *     null for none.
     */
    void start(String threads, String rounds, File output) {
        cancelled = null;
        done = 0;
        total = 0;
        message = null;
        reports = Collections.emptyMap();
        start(new Timing(threads, rounds, output));
    }

    /** Ends a run, if one is under way, as soon as may be. */
    void cancel(String reason) {
        cancelled = reason;
    }

    @Override
    void close() {
        cancel("the screen was closed");
        super.close();
    }

    @Override
    void free() {}

    /** Tells a computer that waits for a file why there is no result. */
    static void refuse(File output, String reason) {
        try {
            write(output, error(reason));
        } catch (IOException error) {
            Log.e(TAG, "cannot write " + output, error);
        }
    }

    private static String error(String reason) {
        StringBuilder json = new StringBuilder("{\"error\": \"");
        for (char letter : reason.toCharArray()) {
            if (letter == '"' || letter == '\\' || letter < ' ' || letter > '~') {
                json.append(String.format("\\u%04x", (int) letter));
            } else {
                json.append(letter);
            }
        }
        return json.append("\"}\n").toString();
    }

    /** Whoever waits for the file never sees a part of it. */
    private static void write(File output, String text) throws IOException {
        File part = new File(output.getPath() + ".part");
        try (FileOutputStream stream = new FileOutputStream(part)) {
            stream.write(text.getBytes(StandardCharsets.UTF_8));
        }
        if (!part.renameTo(output)) {
            throw new IOException("cannot rename " + part);
        }
    }

    private static Picture randomPicture() {
        int[] argb = new int[WIDTH * HEIGHT];
        Random random = new Random(0);
        for (int i = 0; i < argb.length; i++) {
            argb[i] = random.nextInt();
        }
        return new Picture(argb, WIDTH, HEIGHT);
    }

    private final class Timing extends Step implements Listener {
        private final String threads;
        private final String rounds;
        private final File output;
        private final Map<Phase, BenchmarkReport> found =
                new EnumMap<Phase, BenchmarkReport>(Phase.class);

        Timing(String threads, String rounds, File output) {
            this.threads = threads;
            this.rounds = rounds;
            this.output = output;
        }

        @Override
        void work() throws IOException {
            try {
                measure();
            } catch (CancellationException error) {
                throw new DemoException("cancelled: " + cancelled, error);
            }
            if (output != null) {
                write(output, found.get(Phase.INFERENCE).toJson());
            }
        }

        private void measure() {
            int given = Bounds.threads(threads, Runtime.getRuntime().availableProcessors());
            Benchmark benchmark =
                    new Benchmark(Clock.SYSTEM, Bounds.rounds(rounds), Benchmark.WARMUP);
            String device = Build.MANUFACTURER + " " + Build.MODEL;
            String runtime = "TensorFlow Lite " + TensorFlowLite.runtimeVersion() + ", Android "
                    + Build.VERSION.RELEASE;
            List<Model> models = assets.open(given);
            try {
                Samples samples = benchmark.run(models, randomPicture(), this);
                long now = System.currentTimeMillis();
                for (Phase phase : Phase.values()) {
                    found.put(phase, samples.report(phase, device, given, true, runtime, now));
                }
            } finally {
                for (Model model : models) {
                    model.close();
                }
            }
        }

        @Override
        public void onProgress(final int parts, final int all) {
            post(new Runnable() {
                @Override
                public void run() {
                    done = parts;
                    total = all;
                }
            });
        }

        @Override
        public boolean isCancelled() {
            return cancelled != null;
        }

        @Override
        void done() {
            reports = found;
        }

        @Override
        void failed(String words) {
            message = words;
            if (output != null) {
                refuse(output, words);
            }
        }
    }
}
