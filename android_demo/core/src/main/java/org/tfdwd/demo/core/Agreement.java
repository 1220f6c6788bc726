package org.tfdwd.demo.core;

import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CancellationException;

/** How far two models say the same. */
public final class Agreement {
    private final Task task;
    private final double sum;
    private final int photos;

    private Agreement(Task task, double sum, int photos) {
        this.task = task;
        this.sum = sum;
        this.photos = photos;
    }

    /**
     * Runs both models on all photos.
     *
     * @param listener hears of each photo.
     * @throws DemoException no photo, models of different outputs, or as {@link Model#run}.
     * @throws CancellationException the listener said so.
     */
    public static Agreement of(Model first, Model second, List<Picture> photos,
            Listener listener) {
        if (photos.isEmpty()) {
            throw new DemoException("expected at least one picture to compare the models on, got "
                    + "none");
        }
        if (!Arrays.equals(first.output().shape(), second.output().shape())) {
            throw new DemoException("expected two models of the same output, got " + first.name()
                    + " with " + first.output() + " and " + second.name() + " with "
                    + second.output());
        }
        double sum = 0;
        for (int done = 0; done < photos.size(); done++) {
            if (listener.isCancelled()) {
                throw new CancellationException();
            }
            sum += first.task.agreement(first.values(photos.get(done)),
                    second.values(photos.get(done)), first.output());
            listener.onProgress(done + 1, photos.size());
        }
        return new Agreement(first.task, sum, photos.size());
    }

    /** A sentence for the screen. */
    @Override
    public String toString() {
        return task.inWords(sum, photos);
    }
}
