package org.tfdwd.demo.core;

import java.util.Properties;

/**
 * From a picture to the real values that a model reads, as {@code tfdwd.data.evaluation} does it:
 * the shorter side resized (bilinear, antialiased), the centre cropped, rounded to bytes; then
 * grey if the model has one channel, and value * scale + offset.
 */
public final class Preprocessing {
    // Of red, green and blue, as tf.image.rgb_to_grayscale has them.
    private static final float[] GREY = {0.2989f, 0.5870f, 0.1140f};

    private final int resize;
    private final float scale;
    private final float offset;

    /**
     * @param resize pixels of the shorter side before the crop; 0 for those of the crop.
     * @param scale as that of Keras' Rescaling layer. 1 where the model reads 0..255.
     * @param offset as that of Keras' Rescaling layer. 0 where the model reads 0..255.
     * @throws DemoException a negative size.
     */
    public Preprocessing(int resize, float scale, float offset) {
        if (resize < 0) {
            throw new DemoException("expected resize of 0 pixels or more, got " + resize);
        }
        this.resize = resize;
        this.scale = scale;
        this.offset = offset;
    }

    /**
     * Reads {@code resize}, {@code scale} and {@code offset}; what is missing is 0, 1 and 0.
     *
     * @throws DemoException no number, or as the constructor.
     */
    public static Preprocessing from(Properties properties) {
        String resize = properties.getProperty("resize", "0").trim();
        try {
            return new Preprocessing(Integer.parseInt(resize), real(properties, "scale", "1"),
                    real(properties, "offset", "0"));
        } catch (NumberFormatException error) {
            throw new DemoException("resize: expected a whole number, got '" + resize + "'", error);
        }
    }

    /**
     * A property.
     *
     * @throws DemoException it is no finite number.
     */
    static float real(Properties properties, String name, String otherwise) {
        String text = properties.getProperty(name, otherwise);
        try {
            float number = Float.parseFloat(text);
            if (!Float.isNaN(number) && !Float.isInfinite(number)) {
                return number;
            }
        } catch (NumberFormatException error) {
            // Said below, as of numbers that are not finite.
        }
        throw new DemoException(name + ": expected a finite number, got '" + text + "'");
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
        int channels = channels(input);
        float[] colours = resized(picture, input);
        float[] values = channels == 3 ? colours : new float[colours.length / 3];
        for (int i = 0; i < values.length; i++) {
            int value;
            if (channels == 3) {
                value = toByte(colours[i]);
            } else {
                float grey = 0;
                for (int colour = 0; colour < 3; colour++) {
                    grey += toByte(colours[3 * i + colour]) * (1 / 255f) * GREY[colour];
                }
                value = (int) (grey * 255.5f);
            }
            values[i] = value * scale + offset;
        }
        return values;
    }

    /** The number of channels of a model's input. */
    static int channels(TensorSpec input) {
        int[] shape = input.shape();
        if (shape.length != 4 || (shape[3] != 1 && shape[3] != 3)) {
            throw new DemoException("expected a model that reads pictures, (1, height, width, 1 or "
                    + "3), got one that reads " + input);
        }
        return shape[3];
    }

    /**
     * The part of a photo that a model sees.
     *
     * @throws DemoException as {@link #apply}.
     */
    Crop crop(Picture photo, TensorSpec input) {
        return new Crop(photo, resize, input.shape()[1], input.shape()[2]);
    }

    /** (height, width, 3) of the crop, 0..255, not rounded yet. */
    float[] resized(Picture picture, TensorSpec input) {
        Crop crop = crop(picture, input);
        return acrossColumns(acrossRows(picture, crop.resampledRows()), picture.width(),
                crop.resampledColumns());
    }

    /** (new rows, old columns, 3). */
    private static float[] acrossRows(Picture picture, Resampling rows) {
        int width = picture.width();
        float[] sums = new float[rows.starts.length * width * 3];
        for (int row = 0; row < rows.starts.length; row++) {
            for (int tap = 0; tap < rows.weights[row].length; tap++) {
                float weight = rows.weights[row][tap];
                int from = (rows.starts[row] + tap) * width;
                int to = row * width * 3;
                for (int column = 0; column < width; column++, to += 3) {
                    int pixel = picture.argb[from + column];
                    sums[to] += weight * (pixel >> 16 & 0xff);
                    sums[to + 1] += weight * (pixel >> 8 & 0xff);
                    sums[to + 2] += weight * (pixel & 0xff);
                }
            }
        }
        return sums;
    }

    /** (rows, new columns, 3) of (rows, width, 3). */
    private static float[] acrossColumns(float[] values, int width, Resampling columns) {
        int count = columns.starts.length;
        float[] sums = new float[values.length / width * count];
        for (int row = 0; row < values.length / (width * 3); row++) {
            for (int column = 0; column < count; column++) {
                int to = (row * count + column) * 3;
                int from = (row * width + columns.starts[column]) * 3;
                for (float weight : columns.weights[column]) {
                    sums[to] += weight * values[from];
                    sums[to + 1] += weight * values[from + 1];
                    sums[to + 2] += weight * values[from + 2];
                    from += 3;
                }
            }
        }
        return sums;
    }

    static int toByte(float value) {
        return (int) Math.max(0, Math.min(255, value + 0.5f));
    }
}
