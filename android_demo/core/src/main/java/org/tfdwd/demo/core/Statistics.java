package org.tfdwd.demo.core;

import java.util.Arrays;

/** The sums of {@code tfdwd.benchmarking.timing_of}, to the last digit. */
final class Statistics {
    private static final int RESAMPLES = 2000;

    private Statistics() {}

    /**
     * Sums up rounds.
     *
     * @param bytes size of the model.
     * @param seconds for one run, of each round.
     * @param first the same of the model that it is compared with.
     */
    static Timing timing(String name, long bytes, double[] seconds, double[] first) {
        double[] ms = new double[seconds.length];
        double[] ratios = new double[seconds.length];
        for (int round = 0; round < seconds.length; round++) {
            ms[round] = seconds[round] * 1000;
            ratios[round] = first[round] / seconds[round];
        }
        double[] medians = resampledMedians(ratios);
        double speedUp = median(ratios);
        return new Timing(name, bytes, percentile(ms, 50), percentile(ms, 10), percentile(ms, 90),
                speedUp, Math.min(percentile(medians, 2.5), speedUp),
                Math.max(percentile(medians, 97.5), speedUp), ms);
    }

    private static double[] resampledMedians(double[] ratios) {
        NumpyRandom random = new NumpyRandom();
        double[] medians = new double[RESAMPLES];
        double[] drawn = new double[ratios.length];
        for (int sample = 0; sample < RESAMPLES; sample++) {
            for (int i = 0; i < drawn.length; i++) {
                drawn[i] = ratios[random.below(ratios.length)];
            }
            medians[sample] = median(drawn);
        }
        return medians;
    }

    /** As numpy.median. */
    static double median(double[] values) {
        double[] sorted = sorted(values);
        int half = sorted.length / 2;
        return sorted.length % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
    }

    /** As numpy.percentile: between two values, a straight line from the nearer one. */
    static double percentile(double[] values, double percent) {
        double[] sorted = sorted(values);
        double place = percent / 100 * (sorted.length - 1);
        int below = (int) place;
        double low = sorted[below];
        double high = sorted[Math.min(below + 1, sorted.length - 1)];
        double beyond = place - below;
        return beyond < 0.5 ? low + (high - low) * beyond : high - (high - low) * (1 - beyond);
    }

    private static double[] sorted(double[] values) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted;
    }
}
