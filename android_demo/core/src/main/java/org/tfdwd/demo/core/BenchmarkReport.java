package org.tfdwd.demo.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;

/** Timings of several models; {@code tfdwd.BenchmarkReport.from_json} reads its JSON. */
public final class BenchmarkReport {
    /** One for each model, in the order given; not to be changed. */
    public final List<Timing> timings;
    public final String device;
    public final int threads;
    public final int rounds;
    public final String runtime;
    /** When, in UTC, ISO 8601. */
    public final String date;
    public final boolean xnnpack;

    BenchmarkReport(List<Timing> timings, String device, int threads, int rounds, String runtime,
            String date, boolean xnnpack) {
        this.timings = Collections.unmodifiableList(new ArrayList<Timing>(timings));
        this.device = device;
        this.threads = threads;
        this.rounds = rounds;
        this.runtime = runtime;
        this.date = date;
        this.xnnpack = xnnpack;
    }

    /** Indented JSON in ASCII, with a newline at the end. */
    public String toJson() {
        StringBuilder json = new StringBuilder("{\n  \"timings\": [");
        for (int i = 0; i < timings.size(); i++) {
            Timing timing = timings.get(i);
            json.append(i == 0 ? "\n    {" : ",\n    {");
            String indent = "\n      ";
            field(json, indent, "name", quoted(timing.name)).append(',');
            field(json, indent, "bytes", timing.bytes).append(',');
            field(json, indent, "median_ms", timing.medianMs).append(',');
            field(json, indent, "p10_ms", timing.p10Ms).append(',');
            field(json, indent, "p90_ms", timing.p90Ms).append(',');
            field(json, indent, "speed_up", timing.speedUp).append(',');
            field(json, indent, "speed_up_low", timing.speedUpLow).append(',');
            field(json, indent, "speed_up_high", timing.speedUpHigh).append(',');
            field(json, indent, "load_ms", null).append(',');
            field(json, indent, "first_ms", null).append(',');
            field(json, indent, "peak_kib", null).append(',');
            field(json, indent, "samples_ms", array(timing.samplesMs(), indent)).append("\n    }");
        }
        json.append("\n  ],");
        String indent = "\n  ";
        field(json, indent, "device", quoted(device)).append(',');
        field(json, indent, "threads", threads).append(',');
        field(json, indent, "rounds", rounds).append(',');
        field(json, indent, "runtime", quoted(runtime)).append(',');
        field(json, indent, "date", quoted(date)).append(',');
        field(json, indent, "xnnpack", xnnpack);
        return json.append("\n}\n").toString();
    }

    private static StringBuilder field(StringBuilder json, String indent, String name,
            Object value) {
        return json.append(indent).append('"').append(name).append("\": ").append(value);
    }

    private static String array(double[] values, String indent) {
        StringBuilder json = new StringBuilder("[");
        for (double value : values) {
            json.append(json.length() == 1 ? "" : ",").append(indent).append("  ").append(value);
        }
        return json.append(indent).append(']').toString();
    }

    private static String quoted(String text) {
        StringBuilder json = new StringBuilder("\"");
        for (char unit : text.toCharArray()) {
            if (unit == '"' || unit == '\\') {
                json.append('\\').append(unit);
            } else if (unit < ' ' || unit > '~') {
                json.append(String.format(Locale.ROOT, "\\u%04x", (int) unit));
            } else {
                json.append(unit);
            }
        }
        return json.append('"').toString();
    }
}
