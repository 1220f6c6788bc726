package org.tfdwd.demo;

import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import org.tensorflow.lite.DataType;
import org.tensorflow.lite.Interpreter;
import org.tensorflow.lite.Tensor;
import org.tfdwd.demo.core.DemoException;
import org.tfdwd.demo.core.ElementType;
import org.tfdwd.demo.core.ModelRunner;
import org.tfdwd.demo.core.TensorSpec;

/** Runs a model on the CPU, with XNNPACK. */
final class InterpreterRunner implements ModelRunner {
    private final Interpreter interpreter;
    private final TensorSpec input;
    private final TensorSpec output;

    /**
     * @param model the .tflite file, mapped.
     * @param threads at least 1.
     * @throws DemoException no .tflite model, one that this runtime cannot run, or one of several
     *     inputs or outputs.
     */
    InterpreterRunner(MappedByteBuffer model, int threads) {
        try {
            Interpreter.Options options = new Interpreter.Options();
            options.setNumThreads(threads);
            options.setUseXNNPACK(true);
            interpreter = new Interpreter(model, options);
        } catch (RuntimeException error) {
            throw new DemoException("the runtime cannot open it: " + error.getMessage(), error);
        } catch (UnsatisfiedLinkError error) {
            throw new DemoException(
                    "the app has no runtime for this phone's processor: " + error.getMessage(),
                    error);
        }
        try {
            int inputs = interpreter.getInputTensorCount();
            int outputs = interpreter.getOutputTensorCount();
            if (inputs != 1 || outputs != 1) {
                throw new DemoException("expected one input and one output, got " + inputs
                        + " and " + outputs);
            }
            input = spec(interpreter.getInputTensor(0));
            output = spec(interpreter.getOutputTensor(0));
        } catch (RuntimeException error) {
            interpreter.close();
            throw error;
        }
    }

    private static TensorSpec spec(Tensor tensor) {
        Tensor.QuantizationParams held = tensor.quantizationParams();
        return new TensorSpec(
                tensor.shape(), type(tensor.dataType()), held.getScale(), held.getZeroPoint());
    }

    private static ElementType type(DataType type) {
        switch (type) {
            case FLOAT32:
                return ElementType.FLOAT32;
            case UINT8:
                return ElementType.UINT8;
            case INT8:
                return ElementType.INT8;
            default:
                throw new DemoException("expected float32, uint8 or int8 at its ends, got " + type);
        }
    }

    @Override
    public TensorSpec input() {
        return input;
    }

    @Override
    public TensorSpec output() {
        return output;
    }

    @Override
    public void run(ByteBuffer given, ByteBuffer found) {
        found.rewind(); // The interpreter writes from the position on, and moves it.
        try {
            interpreter.run(given, found);
        } catch (RuntimeException error) {
            throw new DemoException("the model failed: " + error.getMessage(), error);
        }
        given.rewind();
        found.rewind();
    }

    @Override
    public void close() {
        interpreter.close();
    }
}
