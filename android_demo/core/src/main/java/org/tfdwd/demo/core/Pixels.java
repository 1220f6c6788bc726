package org.tfdwd.demo.core;

import java.util.Collections;
import java.util.Locale;

/** A picture, (1, height, width, 1 or 3), such as a larger or a cleaner one: drawn as it is. */
final class Pixels extends Task {
    private final float scale;
    private final float offset;

    /**
     * @param scale what the output is multiplied with to become 0..255.
     * @param offset what is added to it then.
     */
    Pixels(float scale, float offset) {
        this.scale = scale;
        this.offset = offset;
    }

    @Override
    void check(String name, TensorSpec output) {
        int[] shape = output.shape();
        if (shape.length != 4 || (shape[3] != 1 && shape[3] != 3)) {
            throw new DemoException(name + ": expected a picture as output, (1, height, width, 1 "
                    + "or 3), got " + output);
        }
    }

    @Override
    Finding find(float[] values, TensorSpec output, Crop crop) {
        int[] shape = output.shape();
        int[] argb = new int[shape[1] * shape[2]];
        for (int pixel = 0; pixel < argb.length; pixel++) {
            argb[pixel] = 0xff;
            for (int channel = 0; channel < 3; channel++) {
                int place = shape[3] == 1 ? pixel : 3 * pixel + channel;
                argb[pixel] = argb[pixel] << 8 | toByte(values, place);
            }
        }
        return new Finding(Collections.<Answer>emptyList(),
                new Picture(argb, shape[2], shape[1]));
    }

    private int toByte(float[] values, int place) {
        return Preprocessing.toByte(number(values[place], place) * scale + offset);
    }

    /** The mean difference between two bytes. */
    @Override
    double agreement(float[] one, float[] other, TensorSpec output) {
        long sum = 0;
        for (int place = 0; place < one.length; place++) {
            sum += Math.abs(toByte(one, place) - toByte(other, place));
        }
        return (double) sum / one.length;
    }

    @Override
    String inWords(double sum, int photos) {
        return String.format(Locale.ROOT, "They differ by %.2f of 255 on average of %d samples.",
                sum / photos, photos);
    }
}
