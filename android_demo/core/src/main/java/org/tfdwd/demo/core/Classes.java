package org.tfdwd.demo.core;

import java.util.Locale;

/** A score for each class, (1, classes): the best are told. */
final class Classes extends Task {
    /** How many answers there are, if there are as many classes. */
    static final int ANSWERS = 5;

    private final Labels labels;

    Classes(Labels labels) {
        this.labels = labels;
    }

    @Override
    void check(String name, TensorSpec output) {
        int[] shape = output.shape();
        if (shape.length != 2) {
            throw new DemoException(name + ": expected a classifier whose output is (1, classes), "
                    + "got one of " + output);
        }
        labels.check(name, shape[1]);
    }

    @Override
    Finding find(float[] values, TensorSpec output, Crop crop) {
        return new Finding(Answer.best(values, ANSWERS, labels), null);
    }

    @Override
    double agreement(float[] one, float[] other, TensorSpec output) {
        return best(one) == best(other) ? 1 : 0;
    }

    private int best(float[] values) {
        return Answer.best(values, 1, labels).get(0).index;
    }

    @Override
    String inWords(double sum, int photos) {
        return String.format(Locale.ROOT, "Same answer on %.0f of %d samples.", sum, photos);
    }
}
