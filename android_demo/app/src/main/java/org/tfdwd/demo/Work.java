package org.tfdwd.demo;

import android.os.Handler;
import android.os.Looper;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * What a screen has under way off the main thread, and what came of it; it outlives a rotation.
 *
 * <p>All but {@link Step#work} runs on the main thread, and so do all readers of its fields.
 */
abstract class Work {
    /** Shows how things stand. */
    interface Screen {
        void update();
    }

    /** A piece of work, and what becomes of its result. */
    abstract static class Step {
        /** Runs off the main thread. */
        abstract void work() throws Exception;

        /** Runs on the main thread after {@link #work} came to its end. */
        abstract void done();

        /** Runs on the main thread after {@link #work} threw. */
        abstract void failed(String message);
    }

    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private final Handler main = new Handler(Looper.getMainLooper());
    private Screen screen;
    private int waiting;

    final void attach(Screen shown) {
        screen = shown;
        screen.update();
    }

    final void detach() {
        screen = null;
    }

    /** Whether a step is under way. */
    final boolean busy() {
        return waiting > 0;
    }

    /** Runs a step after those that were started before it. */
    final void start(final Step step) {
        waiting++;
        worker.execute(new Runnable() {
            @Override
            public void run() {
                String problem = null;
                try {
                    step.work();
                } catch (Exception error) {
                    // A message, whatever it is: other apps' pictures fail in every way.
                    problem = error.getMessage() == null ? error.toString() : error.getMessage();
                } catch (OutOfMemoryError error) {
                    problem = "this phone has too little memory for it";
                }
                finish(step, problem);
            }
        });
        update();
    }

    private void finish(final Step step, final String problem) {
        post(new Runnable() {
            @Override
            public void run() {
                waiting--;
                if (problem == null) {
                    step.done();
                } else {
                    step.failed(problem);
                }
            }
        });
    }

    /** Runs on the main thread what changes a field, then shows it. */
    final void post(final Runnable change) {
        main.post(new Runnable() {
            @Override
            public void run() {
                change.run();
                update();
            }
        });
    }

    final void update() {
        if (screen != null) {
            screen.update();
        }
    }

    /** Frees what is held once the steps under way are done; nothing may be started after it. */
    void close() {
        worker.execute(new Runnable() {
            @Override
            public void run() {
                free();
            }
        });
        worker.shutdown();
    }

    /** Frees what is held; runs off the main thread, after all steps. */
    abstract void free();
}
