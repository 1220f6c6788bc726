package org.tfdwd.demo.core;

import java.util.List;

/** What one model says of one picture, and how long that took. */
public final class Result {
    /** The best classes, best first; not to be changed. */
    public final List<Answer> answers;

    private final long[] nanos;

    /** @param nanos of each {@link Phase}, in order. */
    Result(List<Answer> answers, long... nanos) {
        this.answers = answers;
        this.nanos = nanos;
    }

    /** Milliseconds that a phase took, once: a first impression, no benchmark. */
    public double ms(Phase phase) {
        return nanos[phase.ordinal()] / 1e6;
    }
}
