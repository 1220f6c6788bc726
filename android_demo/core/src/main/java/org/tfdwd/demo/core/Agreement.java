package org.tfdwd.demo.core;

import java.util.List;

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
     * @throws java.util.concurrent.CancellationException the listener said so.
     */
    public static Agreement of(Classifier first, Classifier second, List<Picture> pictures,
            Listener listener) {
        throw new UnsupportedOperationException();
    }
}
