package org.tfdwd.demo.core;

import java.util.List;

/**
 * Times models side by side as {@code tfdwd.benchmark} does: warm-up, then rounds in the order
 * A B, B A, A B and so on, so that a phone that gets hot meanwhile does so for all. Each sample is
 * the mean over as many runs as take 20 ms; the phases are timed apart.
 */
public final class Benchmark {
    /** As {@code tfdwd.benchmark}. */
    public static final int ROUNDS = 30;

    /** As {@code tfdwd.benchmark}. */
    public static final int WARMUP = 3;

    /**
     * @param rounds samples of each model and phase, at least 1.
     * @param warmup runs of each model before anything is timed, at least 1.
     * @throws DemoException a number below 1.
     */
    public Benchmark(Clock clock, int rounds, int warmup) {
        throw new UnsupportedOperationException();
    }

    /**
     * Times the models on one picture. Takes about 0.06 s * models * rounds and more.
     *
     * @param models at least one, of different names; the first is the one that the others are
     *     compared with.
     * @param listener hears of each sample.
     * @throws DemoException no model, two of the same name, or as {@link Classifier#classify}.
     * @throws java.util.concurrent.CancellationException the listener said so.
     */
    public Samples run(List<Classifier> models, Picture picture, Listener listener) {
        throw new UnsupportedOperationException();
    }
}
