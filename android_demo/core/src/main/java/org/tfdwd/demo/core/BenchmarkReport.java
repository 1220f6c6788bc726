package org.tfdwd.demo.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

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
        throw new UnsupportedOperationException();
    }
}
