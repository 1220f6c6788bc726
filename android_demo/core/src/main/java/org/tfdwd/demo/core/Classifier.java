package org.tfdwd.demo.core;

import java.io.Closeable;
import java.nio.ByteBuffer;
import java.util.List;

/** A model with all that stands before and behind it. Not for several threads at once. */
public final class Classifier implements Closeable {
    /** How many answers a result has, if there are as many classes. */
    public static final int ANSWERS = 5;

    private final String name;
    private final long bytes;
    private final ModelRunner runner;
    private final Preprocessing preprocessing;
    private final Labels labels;
    private final ByteBuffer input;
    private final ByteBuffer output;
    private final float[] scores;

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
        Preprocessing.channels(runner.input());
        int classes = runner.output().elements();
        if (runner.output().shape().length != 2) {
            throw new DemoException(name + ": expected a classifier whose output is (1, classes), "
                    + "got one of " + runner.output());
        }
        if (labels != Labels.NONE && labels.count() != classes) {
            throw new DemoException(name + ": expected a label for each of its " + classes
                    + " classes, got " + labels.count());
        }
        this.name = name;
        this.bytes = bytes;
        this.runner = runner;
        this.preprocessing = preprocessing;
        this.labels = labels;
        this.input = runner.input().newBuffer();
        this.output = runner.output().newBuffer();
        this.scores = new float[classes];
    }

    public String name() {
        return name;
    }

    public long bytes() {
        return bytes;
    }

    /**
     * Runs the model on a picture; the phases are timed apart.
     *
     * @throws DemoException as {@link Preprocessing#apply} and {@link ModelRunner#run}, or the
     *     model gave NaN.
     */
    public Result classify(Picture picture, Clock clock) {
        long start = clock.nanos();
        preprocess(picture);
        long ready = clock.nanos();
        infer();
        long done = clock.nanos();
        List<Answer> answers = answers();
        long end = clock.nanos();
        return new Result(answers, ready - start, done - ready, end - done);
    }

    /**
     * The model's output for a picture as real values, one for each class.
     *
     * @throws DemoException as {@link #classify}.
     */
    public float[] scores(Picture picture) {
        preprocess(picture);
        infer();
        answers();
        return scores.clone();
    }

    /** From pixels to the bytes of the model's input. */
    void preprocess(Picture picture) {
        runner.input().write(preprocessing.apply(picture, runner.input()), input);
    }

    /** Runs the model on what {@link #preprocess} left. */
    void infer() {
        runner.run(input, output);
    }

    /** What {@link #infer} left. */
    List<Answer> answers() {
        runner.output().read(output, scores);
        return Answer.best(scores, ANSWERS, labels);
    }

    /** Closes the runner. */
    @Override
    public void close() {
        runner.close();
    }
}
