package org.tfdwd.demo.core;

import com.sun.jna.Library;
import com.sun.jna.Memory;
import com.sun.jna.Native;
import com.sun.jna.NativeLong;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.PointerByReference;
import java.io.File;
import java.nio.ByteBuffer;

/**
 * A model on LiteRT's C library, such as the one in the ai-edge-litert package (2.3.0; its names
 * are stable, its arguments were others before 2.2).
 */
final class LiteRt implements ModelRunner {
    private static final int CPU = 1;
    private static final int HOST_MEMORY = 1;
    private static final int READ = 0;
    private static final int WRITE = 1;
    // LiteRtRankedTensorType: the element's type, the rank in 7 bits, then 8 lengths and 8 strides.
    private static final int TENSOR_TYPE_BYTES = 72;
    private static final int QUANTISATION_BYTES = 16;
    private static final int PER_TENSOR = 1;

    /** The functions that are used, as the headers in litert/c declare them. */
    interface Functions extends Library {
        int LiteRtCreateEnvironment(int count, Pointer options, PointerByReference environment);

        int LiteRtCreateModelFromFile(Pointer environment, String path, PointerByReference model);

        int LiteRtCreateOptions(PointerByReference options);

        int LiteRtSetOptionsHardwareAccelerators(Pointer options, int accelerators);

        int LiteRtCreateCompiledModel(Pointer environment, Pointer model, Pointer options,
                PointerByReference compiled);

        int LiteRtGetModelSignature(Pointer model, NativeLong index, PointerByReference signature);

        int LiteRtGetSignatureInputTensorByIndex(Pointer signature, NativeLong index,
                PointerByReference tensor);

        int LiteRtGetSignatureOutputTensorByIndex(Pointer signature, NativeLong index,
                PointerByReference tensor);

        int LiteRtGetRankedTensorType(Pointer tensor, Pointer type);

        int LiteRtGetQuantizationTypeId(Pointer tensor, Pointer id);

        int LiteRtGetPerTensorQuantization(Pointer tensor, Pointer quantisation);

        int LiteRtCreateManagedTensorBuffer(Pointer environment, int kind, Pointer type,
                NativeLong bytes, PointerByReference buffer);

        int LiteRtLockTensorBuffer(Pointer buffer, PointerByReference address, int mode);

        int LiteRtUnlockTensorBuffer(Pointer buffer);

        int LiteRtRunCompiledModel(Pointer compiled, NativeLong signature, NativeLong inputs,
                Pointer[] inputBuffers, NativeLong outputs, Pointer[] outputBuffers);

        void LiteRtDestroyTensorBuffer(Pointer buffer);

        void LiteRtDestroyCompiledModel(Pointer compiled);

        void LiteRtDestroyOptions(Pointer options);

        void LiteRtDestroyModel(Pointer model);

        void LiteRtDestroyEnvironment(Pointer environment);
    }

    private static final NativeLong ZERO = new NativeLong(0);
    private static final NativeLong ONE = new NativeLong(1);

    private final Functions functions;
    private final Pointer environment;
    private final Pointer model;
    private final Pointer options;
    private final Pointer compiled;
    private final Tensor input;
    private final Tensor output;
    private boolean closed;

    LiteRt(String library, File file) {
        functions = Native.load(library, Functions.class);
        PointerByReference made = new PointerByReference();
        check(functions.LiteRtCreateEnvironment(0, null, made), "start");
        environment = made.getValue();
        check(functions.LiteRtCreateModelFromFile(environment, file.getPath(), made),
                "read " + file);
        model = made.getValue();
        check(functions.LiteRtCreateOptions(made), "make options");
        options = made.getValue();
        check(functions.LiteRtSetOptionsHardwareAccelerators(options, CPU), "choose the CPU");
        check(functions.LiteRtCreateCompiledModel(environment, model, options, made),
                "open " + file);
        compiled = made.getValue();
        check(functions.LiteRtGetModelSignature(model, ZERO, made), "find the signature");
        Pointer signature = made.getValue();
        check(functions.LiteRtGetSignatureInputTensorByIndex(signature, ZERO, made), "find input");
        input = new Tensor(made.getValue());
        check(functions.LiteRtGetSignatureOutputTensorByIndex(signature, ZERO, made),
                "find output");
        output = new Tensor(made.getValue());
    }

    private static void check(int status, String what) {
        if (status != 0) {
            throw new DemoException("LiteRT cannot " + what + ": status " + status);
        }
    }

    private final class Tensor {
        final TensorSpec spec;
        final int bytes;
        final Pointer buffer;

        Tensor(Pointer tensor) {
            Memory type = new Memory(TENSOR_TYPE_BYTES);
            check(functions.LiteRtGetRankedTensorType(tensor, type), "tell a tensor's type");
            int[] shape = type.getIntArray(8, type.getByte(4) & 0x7f);
            Memory quantisation = new Memory(QUANTISATION_BYTES);
            quantisation.clear();
            check(functions.LiteRtGetQuantizationTypeId(tensor, quantisation), "tell a kind");
            if (quantisation.getInt(0) == PER_TENSOR) {
                check(functions.LiteRtGetPerTensorQuantization(tensor, quantisation),
                        "tell a scale");
            }
            spec = new TensorSpec(shape, elementType(type.getInt(0)), quantisation.getFloat(0),
                    (int) quantisation.getLong(8));
            bytes = spec.newBuffer().capacity();
            PointerByReference made = new PointerByReference();
            check(functions.LiteRtCreateManagedTensorBuffer(environment, HOST_MEMORY, type,
                    new NativeLong(bytes), made), "allocate a tensor");
            buffer = made.getValue();
        }

        /** What the tensor holds, to be read or written until it is unlocked. */
        ByteBuffer lock(int mode) {
            PointerByReference address = new PointerByReference();
            check(functions.LiteRtLockTensorBuffer(buffer, address, mode), "lock a tensor");
            return address.getValue().getByteBuffer(0, bytes);
        }

        void unlock() {
            check(functions.LiteRtUnlockTensorBuffer(buffer), "unlock a tensor");
        }
    }

    private static ElementType elementType(int code) {
        switch (code) {
            case 1:
                return ElementType.FLOAT32;
            case 3:
                return ElementType.UINT8;
            case 7:
                return ElementType.INT16;
            case 9:
                return ElementType.INT8;
            default:
                throw new DemoException("no type for LiteRT's " + code);
        }
    }

    @Override
    public TensorSpec input() {
        return input.spec;
    }

    @Override
    public TensorSpec output() {
        return output.spec;
    }

    @Override
    public void run(ByteBuffer from, ByteBuffer to) {
        input.lock(WRITE).put(from.duplicate());
        input.unlock();
        check(functions.LiteRtRunCompiledModel(compiled, ZERO, ONE, new Pointer[] {input.buffer},
                ONE, new Pointer[] {output.buffer}), "run the model");
        to.duplicate().put(output.lock(READ));
        output.unlock();
    }

    @Override
    public void close() {
        if (!closed) {
            closed = true;
            functions.LiteRtDestroyTensorBuffer(input.buffer);
            functions.LiteRtDestroyTensorBuffer(output.buffer);
            functions.LiteRtDestroyCompiledModel(compiled);
            functions.LiteRtDestroyOptions(options);
            functions.LiteRtDestroyModel(model);
            functions.LiteRtDestroyEnvironment(environment);
        }
    }
}
