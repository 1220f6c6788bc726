package org.tfdwd.demo.core;

/** One class and what the model gave it. */
public final class Answer {
    public final int index;
    public final String label;
    public final float score;

    public Answer(int index, String label, float score) {
        this.index = index;
        this.label = label;
        this.score = score;
    }

    @Override
    public String toString() {
        return label + " " + score;
    }
}
