package org.tfdwd.demo.core;

/** A clock for measuring how long something takes. */
public interface Clock {
    /** The machine's own, {@link System#nanoTime()}. */
    Clock SYSTEM = new Clock() {
        @Override
        public long nanos() {
            return System.nanoTime();
        }
    };

    /** Nanoseconds since some fixed moment; never goes back. */
    long nanos();
}
