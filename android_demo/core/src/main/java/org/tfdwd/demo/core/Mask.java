package org.tfdwd.demo.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;

/**
 * A score for each class at each place, (1, height, width, classes), or for one class its
 * probability there, (1, height, width, 1): drawn as translucent colours over the photo.
 */
final class Mask extends Task {
    /** What the photo is blended with where the model did not see it. */
    private static final int BLACK = 0xff000000;

    private final Labels labels;

    Mask(Labels labels) {
        this.labels = labels;
    }

    @Override
    void check(String name, TensorSpec output) {
        int[] shape = output.shape();
        if (shape.length != 4) {
            throw new DemoException(name + ": expected a mask whose output is (1, height, width, "
                    + "classes), got one of " + output);
        }
        labels.check(name, shape[3]);
    }

    /** The answers are the classes that cover most, with their share of all places. */
    @Override
    Finding find(float[] values, TensorSpec output, Crop crop) {
        int[] shape = output.shape();
        int[] colours = colours(values, shape[3]);
        // Of a single class the places without it count for nothing.
        int first = shape[3] == 1 ? 1 : 0;
        int[] places = new int[first + shape[3]];
        for (int colour : colours) {
            places[colour]++;
        }
        float[] shares = new float[shape[3]];
        for (int index = 0; index < shares.length; index++) {
            shares[index] = (float) places[first + index] / colours.length;
        }
        List<Answer> answers = new ArrayList<Answer>();
        for (Answer answer : Answer.best(shares, Classes.ANSWERS, labels)) {
            answers.add(new Answer(answer.index, answer.label, answer.score,
                    argb(answer.index + first)));
        }
        return new Finding(Collections.unmodifiableList(answers),
                drawn(colours, shape[1], shape[2], crop));
    }

    /** For each place its class, or for a single class 1 where it is and 0 where not. */
    private static int[] colours(float[] values, int classes) {
        int[] colours = new int[values.length / classes];
        for (int place = 0; place < colours.length; place++) {
            int start = place * classes;
            int best = 0;
            for (int index = 0; index < classes; index++) {
                if (number(values[start + index], start + index) > values[start + best]) {
                    best = index;
                }
            }
            colours[place] = classes > 1 ? best : values[start] >= 0.5f ? 1 : 0;
        }
        return colours;
    }

    /**
     * The colour of PASCAL VOC's colour map (Everingham et al., IJCV 2010, VOClabelcolormap): the
     * bits of a number dealt out to red, green and blue, from the highest on. 0, the background, is
     * see-through.
     */
    static int argb(int number) {
        int argb = number == 0 ? 0 : BLACK;
        for (int bit = 0; number >> 3 * bit != 0; bit++) {
            for (int channel = 0; channel < 3; channel++) {
                argb |= (number >> 3 * bit + channel & 1) << 8 * (2 - channel) + 7 - bit;
            }
        }
        return argb;
    }

    private static Picture drawn(int[] colours, int height, int width, Crop crop) {
        int[] over = new int[colours.length];
        for (int place = 0; place < over.length; place++) {
            over[place] = argb(colours[place]);
        }
        Picture photo = crop.photo;
        int[] rows = crop.rowParts(height);
        int[] columns = crop.columnParts(width);
        int[] drawn = new int[photo.argb.length];
        for (int y = 0, pixel = 0; y < rows.length; y++) {
            for (int x = 0; x < columns.length; x++, pixel++) {
                boolean seen = rows[y] >= 0 && columns[x] >= 0;
                int colour = seen ? over[rows[y] * width + columns[x]] : BLACK;
                drawn[pixel] = BLACK | (colour == 0 ? photo.argb[pixel]
                        : half(photo.argb[pixel]) + half(colour));
            }
        }
        return new Picture(drawn, photo.width(), photo.height());
    }

    /** Half of each of red, green and blue. */
    private static int half(int argb) {
        return argb >> 1 & 0x7f7f7f;
    }

    /** The share of places at which both say the same. */
    @Override
    double agreement(float[] one, float[] other, TensorSpec output) {
        int classes = output.shape()[3];
        int[] first = colours(one, classes);
        int[] second = colours(other, classes);
        int same = 0;
        for (int place = 0; place < first.length; place++) {
            same += first[place] == second[place] ? 1 : 0;
        }
        return (double) same / first.length;
    }

    @Override
    String inWords(double sum, int photos) {
        return String.format(Locale.ROOT, "Same class at %.1f %% of the places of %d samples.",
                100 * sum / photos, photos);
    }
}
