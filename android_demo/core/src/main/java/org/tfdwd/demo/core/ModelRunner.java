package org.tfdwd.demo.core;

import java.io.Closeable;
import java.nio.ByteBuffer;

/**
 * A .tflite model of one input and one output, ready to run. Not for several threads at once.
 *
 * <p>Implemented on the phone by the LiteRT interpreter and in the tests by LiteRT's C library.
 */
public interface ModelRunner extends Closeable {
    /** The input: a picture, (1, height, width, channels). */
    TensorSpec input();

    /** The output, of which a {@link Task} knows what it stands for. */
    TensorSpec output();

    /**
     * Runs the model once.
     *
     * @param input direct, in native byte order, from position 0, as {@link TensorSpec#newBuffer}
     *     makes it for {@link #input}. Its position is as before afterwards.
     * @param output the same for {@link #output}; overwritten. Its position is as before
     *     afterwards.
     * @throws DemoException the runtime reports an error.
     */
    void run(ByteBuffer input, ByteBuffer output);

    /** Frees the model. Closing twice does nothing. */
    @Override
    void close();
}
