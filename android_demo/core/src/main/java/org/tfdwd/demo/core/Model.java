package org.tfdwd.demo.core;

import java.io.Closeable;
import java.nio.ByteBuffer;

/** A model with all that stands before and behind it. Not for several threads at once. */
public final class Model implements Closeable {
    final Task task;
    private final String name;
    private final long bytes;
    private final ModelRunner runner;
    private final Preprocessing preprocessing;
    private final ByteBuffer input;
    private final ByteBuffer output;
    private final float[] values;

    /**
     * @param name of the model, for the report.
     * @param bytes size of the .tflite file, for the report.
     * @param runner closed by {@link #close}.
     * @throws DemoException the model does not read a picture, or its output is not one of the
     *     task. The runner is not closed then.
     */
    public Model(String name, long bytes, ModelRunner runner, Preprocessing preprocessing,
            Task task) {
        Preprocessing.channels(runner.input());
        task.check(name, runner.output());
        this.name = name;
        this.bytes = bytes;
        this.runner = runner;
        this.preprocessing = preprocessing;
        this.task = task;
        this.input = runner.input().newBuffer();
        this.output = runner.output().newBuffer();
        this.values = new float[runner.output().elements()];
    }

    public String name() {
        return name;
    }

    public long bytes() {
        return bytes;
    }

    /** What the model gives. */
    TensorSpec output() {
        return runner.output();
    }

    /**
     * Runs the model on a photo; the phases are timed apart.
     *
     * @throws DemoException as {@link Preprocessing#apply} and {@link ModelRunner#run}, or the
     *     model gave NaN.
     */
    public Result run(Picture photo, Clock clock) {
        long start = clock.nanos();
        preprocess(photo);
        long ready = clock.nanos();
        infer();
        long done = clock.nanos();
        Finding finding = find(photo);
        long end = clock.nanos();
        return new Result(finding, ready - start, done - ready, end - done);
    }

    /**
     * The model's output for a photo as real values, row by row.
     *
     * @throws DemoException as {@link Preprocessing#apply} and {@link ModelRunner#run}.
     */
    public float[] values(Picture photo) {
        preprocess(photo);
        infer();
        runner.output().read(output, values);
        return values.clone();
    }

    /** From pixels to the bytes of the model's input. */
    void preprocess(Picture photo) {
        runner.input().write(preprocessing.apply(photo, runner.input()), input);
    }

    /** Runs the model on what {@link #preprocess} left. */
    void infer() {
        runner.run(input, output);
    }

    /** What {@link #infer} left, said of that photo. */
    Finding find(Picture photo) {
        runner.output().read(output, values);
        return task.find(values, runner.output(), preprocessing.crop(photo, runner.input()));
    }

    /** Closes the runner. */
    @Override
    public void close() {
        runner.close();
    }
}
