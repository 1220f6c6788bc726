package org.tfdwd.demo.core;

/** What {@link Benchmark} measured. */
public final class Samples {
    /**
     * Sums up one phase, as {@code tfdwd.benchmark} would.
     *
     * @param device such as "Google Pixel 8".
     * @param threads that the models were given.
     * @param xnnpack whether LiteRT was left to use XNNPACK.
     * @param runtime such as "TensorFlow Lite 2.16.1 (Android)".
     * @param epochMillis when, in milliseconds since 1970, UTC.
     */
    public BenchmarkReport report(Phase phase, String device, int threads, boolean xnnpack,
            String runtime, long epochMillis) {
        throw new UnsupportedOperationException();
    }
}
