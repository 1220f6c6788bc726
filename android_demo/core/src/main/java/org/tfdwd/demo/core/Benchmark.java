package org.tfdwd.demo.core;

import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CancellationException;

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

    private static final double SAMPLE_SECONDS = 0.02;
    private static final Phase[] PHASES = Phase.values();

    private final Clock clock;
    private final int rounds;
    private final int warmup;

    /**
     * @param rounds samples of each model and phase, at least 1.
     * @param warmup runs of each model before anything is timed, at least 1.
     * @throws DemoException a number below 1.
     */
    public Benchmark(Clock clock, int rounds, int warmup) {
        if (rounds < 1 || warmup < 1) {
            throw new DemoException("expected rounds and warm-up of at least 1, got " + rounds
                    + " and " + warmup);
        }
        this.clock = clock;
        this.rounds = rounds;
        this.warmup = warmup;
    }

    /**
     * Times the models on one picture. Takes 0.06 seconds and more for each sample of each model.
     *
     * @param models at least one, of different names; the first is the one that the others are
     *     compared with.
     * @param listener hears of each of the rounds * models samples.
     * @throws DemoException no model, two of the same name, or as {@link Model#run}.
     * @throws CancellationException the listener said so.
     */
    public Samples run(List<Model> models, Picture picture, Listener listener) {
        checkNames(models);
        int[][] runs = new int[models.size()][PHASES.length];
        for (int model = 0; model < runs.length; model++) {
            for (Phase phase : PHASES) { // in order: each needs what the one before left
                stopIfCancelled(listener);
                secondsPerRun(models.get(model), phase, picture, warmup);
                runs[model][phase.ordinal()] = runsPerSample(models.get(model), phase, picture);
            }
        }
        double[][][] seconds = new double[PHASES.length][models.size()][rounds];
        for (int sample = 0; sample < rounds * models.size(); sample++) {
            stopIfCancelled(listener);
            int round = sample / models.size();
            int place = sample % models.size();
            int model = round % 2 == 0 ? place : models.size() - 1 - place;
            for (Phase phase : PHASES) {
                int count = runs[model][phase.ordinal()];
                seconds[phase.ordinal()][model][round] =
                        secondsPerRun(models.get(model), phase, picture, count);
            }
            listener.onProgress(sample + 1, rounds * models.size());
        }
        return new Samples(models, seconds);
    }

    private static void checkNames(List<Model> models) {
        Set<String> names = new HashSet<String>();
        for (Model model : models) {
            if (!names.add(model.name())) {
                throw new DemoException("expected models of different names, got two called "
                        + model.name());
            }
        }
        if (names.isEmpty()) {
            throw new DemoException("expected at least one model to time, got none");
        }
    }

    private static void stopIfCancelled(Listener listener) {
        if (listener.isCancelled()) {
            throw new CancellationException();
        }
    }

    private double secondsPerRun(Model model, Phase phase, Picture picture, int runs) {
        long start = clock.nanos();
        for (int run = 0; run < runs; run++) {
            switch (phase) {
                case PREPROCESSING:
                    model.preprocess(picture);
                    break;
                case INFERENCE:
                    model.infer();
                    break;
                default:
                    model.find(picture);
            }
        }
        return (clock.nanos() - start) / 1e9 / runs;
    }

    /** Doubles the runs until they last long enough. */
    private int runsPerSample(Model model, Phase phase, Picture picture) {
        int runs = 1;
        while (secondsPerRun(model, phase, picture, runs) * runs < SAMPLE_SECONDS) {
            runs *= 2;
        }
        return runs;
    }
}
