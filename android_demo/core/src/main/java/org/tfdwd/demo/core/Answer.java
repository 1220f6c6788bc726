package org.tfdwd.demo.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** One class and what the model gave it. */
public final class Answer {
    /** The class, from 0. */
    public final int index;
    public final String label;
    public final float score;
    /** In which it is drawn, 0xAARRGGBB; 0 where it is not. */
    public final int colour;

    Answer(int index, String label, float score, int colour) {
        this.index = index;
        this.label = label;
        this.score = score;
        this.colour = colour;
    }

    /**
     * The best classes, best first. Of equal scores the first class counts as the higher.
     *
     * @param scores one for each class.
     * @param count of answers wanted; fewer come where there are fewer classes.
     * @throws DemoException a score is NaN.
     */
    static List<Answer> best(float[] scores, int count, Labels labels) {
        int[] best = new int[Math.min(count, scores.length)];
        int found = 0;
        for (int index = 0; index < scores.length; index++) {
            float score = Task.number(scores[index], index);
            int place = found;
            while (place > 0 && score > scores[best[place - 1]]) {
                if (place < best.length) {
                    best[place] = best[place - 1];
                }
                place--;
            }
            if (place < best.length) {
                best[place] = index;
                found = Math.min(found + 1, best.length);
            }
        }
        List<Answer> answers = new ArrayList<Answer>(best.length);
        for (int index : best) {
            answers.add(new Answer(index, labels.of(index), scores[index], 0));
        }
        return Collections.unmodifiableList(answers);
    }

    @Override
    public String toString() {
        return label + " " + score;
    }
}
