package org.tfdwd.demo.core;

import java.util.Properties;

/**
 * From a picture to the real values that a model reads, as {@code tfdwd.data.evaluation} does it:
 * the shorter side resized (bilinear, antialiased), the centre cropped, rounded to bytes; then
 * grey if the model has one channel, and value * scale + offset.
 */
public final class Preprocessing {
    /**
     * @param resize pixels of the shorter side before the crop; 0 for those of the crop.
     * @param scale as that of Keras' Rescaling layer. 1 where the model reads 0..255.
     * @param offset as that of Keras' Rescaling layer. 0 where the model reads 0..255.
     * @throws DemoException a negative size, or numbers that are not finite.
     */
    public Preprocessing(int resize, float scale, float offset) {
        throw new UnsupportedOperationException();
    }

    /**
     * Reads {@code resize}, {@code scale} and {@code offset}; what is missing is 0, 1 and 0.
     *
     * @throws DemoException no number.
     */
    public static Preprocessing from(Properties properties) {
        throw new UnsupportedOperationException();
    }

    /**
     * Makes the values for a model.
     *
     * @param picture of any size.
     * @param input of the model, (1, height, width, 1 or 3).
     * @return height * width * channels values, not quantised yet ({@link TensorSpec#write} does
     *     that).
     * @throws DemoException the input is not that of a picture, or is larger than the resized
     *     picture.
     */
    public float[] apply(Picture picture, TensorSpec input) {
        throw new UnsupportedOperationException();
    }
}
