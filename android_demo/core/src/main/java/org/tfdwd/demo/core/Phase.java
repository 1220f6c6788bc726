package org.tfdwd.demo.core;

/** What is timed apart. */
public enum Phase {
    /** From pixels to the bytes of the model's input. */
    PREPROCESSING,
    /** {@link ModelRunner#run}, with its copying of input and output. */
    INFERENCE,
    /** From the bytes of the model's output to the best classes, and to what is drawn. */
    POSTPROCESSING
}
