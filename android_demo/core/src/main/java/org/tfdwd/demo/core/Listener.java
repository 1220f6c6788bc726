package org.tfdwd.demo.core;

/** Hears how far a long piece of work is and may end it. Called on the thread that works. */
public interface Listener {
    /** {@code done} of {@code total} equal parts are done. */
    void onProgress(int done, int total);

    /** Asked before each part; true ends the work with a CancellationException. */
    boolean isCancelled();
}
