package org.tfdwd.demo.core;

import java.io.Closeable;

/** A model with all that stands before and behind it. Not for several threads at once. */
public final class Classifier implements Closeable {
    /** How many classes {@link #classify} and the benchmark give. */
    public static final int BEST = 5;

    /**
     * @param name of the model, for the report.
     * @param bytes size of the .tflite file, for the report.
     * @param runner closed by {@link #close}.
     * @param labels as many as the model has classes, or {@link Labels#NONE}.
     * @throws DemoException the model does not read a picture or is no classifier, or the labels
     *     do not fit. The runner is not closed then.
     */
    public Classifier(String name, long bytes, ModelRunner runner, Preprocessing preprocessing,
            Labels labels) {
        throw new UnsupportedOperationException();
    }

    public String name() {
        throw new UnsupportedOperationException();
    }

    public long bytes() {
        throw new UnsupportedOperationException();
    }

    /**
     * Runs the model on a picture; phases are timed apart.
     *
     * @throws DemoException as {@link ModelRunner#run}, or the model gave NaN.
     */
    public Result classify(Picture picture, Clock clock) {
        throw new UnsupportedOperationException();
    }

    /**
     * The model's output of a picture as real values, one for each class.
     *
     * @throws DemoException as {@link #classify}.
     */
    public float[] scores(Picture picture) {
        throw new UnsupportedOperationException();
    }

    /** Closes the runner. */
    @Override
    public void close() {
        throw new UnsupportedOperationException();
    }
}
