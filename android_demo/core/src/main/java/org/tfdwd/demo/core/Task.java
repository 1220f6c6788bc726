package org.tfdwd.demo.core;

import java.util.Properties;

/** What a model's output stands for: {@link Classes}, a {@link Mask} or {@link Pixels}. */
public abstract class Task {
    Task() {}

    /**
     * Reads {@code task}, which is "classes" where it is missing, and for "picture" {@code
     * output_scale} and {@code output_offset}, which are 1 and 0 where they are missing.
     *
     * @param labels of the classes; a picture has none.
     * @throws DemoException no such task, or no finite number.
     */
    public static Task from(Properties properties, Labels labels) {
        String task = properties.getProperty("task", "classes").trim();
        switch (task) {
            case "classes":
                return new Classes(labels);
            case "mask":
                return new Mask(labels);
            case "picture":
                return new Pixels(Preprocessing.real(properties, "output_scale", "1"),
                        Preprocessing.real(properties, "output_offset", "0"));
            default:
                throw new DemoException("task: expected classes, mask or picture, got '" + task
                        + "'");
        }
    }

    /**
     * Looks at a model's output.
     *
     * @param name of the model, for the message.
     * @throws DemoException it is not an output of this task, or the labels do not fit.
     */
    abstract void check(String name, TensorSpec output);

    /**
     * What an output says of a photo.
     *
     * @param values real values of the output, row by row.
     * @param crop of the photo, which the model saw.
     * @throws DemoException a value is NaN.
     */
    abstract Finding find(float[] values, TensorSpec output, Crop crop);

    /**
     * How far two models agree on one photo; {@link #inWords} says in which unit.
     *
     * @throws DemoException a value is NaN.
     */
    abstract double agreement(float[] one, float[] other, TensorSpec output);

    /** The sum of {@link #agreement} over some photos as a sentence. */
    abstract String inWords(double sum, int photos);

    static float number(float value, int place) {
        if (Float.isNaN(value)) {
            throw new DemoException("the model gave NaN as value " + place + " of its output");
        }
        return value;
    }
}
