package org.tfdwd.demo.core;

import java.util.List;
import java.util.concurrent.CancellationException;

/** How often two models say the same. */
public final class Agreement {
    /** Number of pictures. */
    public final int pictures;
    /** Pictures on which both have the same best class. */
    public final int same;
    /** Largest difference between their scores of a class. */
    public final float largestDifference;

    private Agreement(int pictures, int same, float largestDifference) {
        this.pictures = pictures;
        this.same = same;
        this.largestDifference = largestDifference;
    }

    /**
     * Runs both models on all pictures.
     *
     * @param listener hears of each picture.
     * @throws DemoException no picture, models of different numbers of classes, or as {@link
     *     Classifier#classify}.
     * @throws CancellationException the listener said so.
     */
    public static Agreement of(Classifier first, Classifier second, List<Picture> pictures,
            Listener listener) {
        if (pictures.isEmpty()) {
            throw new DemoException("expected at least one picture to compare the models on, got "
                    + "none");
        }
        int same = 0;
        float largest = 0;
        for (int done = 0; done < pictures.size(); done++) {
            if (listener.isCancelled()) {
                throw new CancellationException();
            }
            float[] one = first.scores(pictures.get(done));
            float[] other = second.scores(pictures.get(done));
            if (one.length != other.length) {
                throw new DemoException("expected two models of the same classes, got "
                        + first.name() + " with " + one.length + " and " + second.name()
                        + " with " + other.length);
            }
            for (int i = 0; i < one.length; i++) {
                largest = Math.max(largest, Math.abs(one[i] - other[i]));
            }
            if (best(one) == best(other)) {
                same++;
            }
            listener.onProgress(done + 1, pictures.size());
        }
        return new Agreement(pictures.size(), same, largest);
    }

    private static int best(float[] scores) {
        return Answer.best(scores, 1, Labels.NONE).get(0).index;
    }
}
