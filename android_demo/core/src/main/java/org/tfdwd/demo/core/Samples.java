package org.tfdwd.demo.core;

import java.text.SimpleDateFormat;
import java.util.ArrayList;
import java.util.Date;
import java.util.List;
import java.util.Locale;
import java.util.TimeZone;

/** What {@link Benchmark} measured. */
public final class Samples {
    private final List<String> names = new ArrayList<String>();
    private final List<Long> bytes = new ArrayList<Long>();
    private final double[][][] seconds;

    /** @param seconds of one run, by phase, model and round. */
    Samples(List<Model> models, double[][][] seconds) {
        for (Model model : models) {
            names.add(model.name());
            bytes.add(model.bytes());
        }
        this.seconds = seconds;
    }

    /**
     * Sums up one phase as {@code tfdwd.benchmark} would.
     *
     * @param device such as "Google Pixel 8".
     * @param threads that the models were given.
     * @param xnnpack whether LiteRT was left to use XNNPACK.
     * @param runtime such as "TensorFlow Lite 2.16.1 (Android)".
     * @param epochMillis when, in milliseconds since 1970, UTC.
     * @throws DemoException the clock stood still.
     */
    public BenchmarkReport report(Phase phase, String device, int threads, boolean xnnpack,
            String runtime, long epochMillis) {
        double[][] models = seconds[phase.ordinal()];
        List<Timing> timings = new ArrayList<Timing>();
        for (int model = 0; model < models.length; model++) {
            timings.add(Statistics.timing(
                    names.get(model), bytes.get(model), models[model], models[0]));
        }
        SimpleDateFormat iso = new SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'+00:00'", Locale.ROOT);
        iso.setTimeZone(TimeZone.getTimeZone("UTC"));
        return new BenchmarkReport(timings, device, threads, models[0].length, runtime,
                iso.format(new Date(epochMillis)), xnnpack);
    }
}
