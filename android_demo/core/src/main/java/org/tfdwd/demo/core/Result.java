package org.tfdwd.demo.core;

/** What one model says of one photo, and how long that took. */
public final class Result {
    public final Finding finding;

    private final long[] nanos;

    /** @param nanos of each {@link Phase}, in order. */
    Result(Finding finding, long... nanos) {
        this.finding = finding;
        this.nanos = nanos;
    }

    /** Milliseconds that a phase took, once: a first impression, no benchmark. */
    public double ms(Phase phase) {
        return nanos[phase.ordinal()] / 1e6;
    }
}
