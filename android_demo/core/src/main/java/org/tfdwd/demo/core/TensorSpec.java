package org.tfdwd.demo.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/**
 * Shape, type and quantisation of a model's input or output.
 *
 * <p>A quantised tensor holds whole numbers that stand for (number - zeroPoint) * scale.
 */
public final class TensorSpec {
    private final int[] shape;
    private final ElementType type;
    private final float scale;
    private final int zeroPoint;
    private final int elements;

    /**
     * @param shape with the batch, which is 1.
     * @param type of one element.
     * @param scale 0 where the tensor is not quantised.
     * @param zeroPoint 0 where the tensor is not quantised.
     * @throws DemoException a shape that does not begin with 1 or is not known, or floats that
     *     are quantised.
     */
    public TensorSpec(int[] shape, ElementType type, float scale, int zeroPoint) {
        int product = 1;
        for (int length : shape) {
            product *= Math.max(length, 0);
        }
        if (shape.length == 0 || shape[0] != 1 || product == 0) {
            throw new DemoException("expected a tensor for one picture, (1, ...), got "
                    + Arrays.toString(shape) + ": export the model with a batch of 1");
        }
        if (!(scale >= 0) || (type == ElementType.FLOAT32 && scale != 0)) {
            throw new DemoException("expected a scale above 0 for whole numbers or 0 for none, got "
                    + scale + " for " + type);
        }
        this.shape = shape.clone();
        this.type = type;
        this.scale = scale;
        this.zeroPoint = zeroPoint;
        this.elements = product;
    }

    /** A copy of the shape, with the batch. */
    public int[] shape() {
        return shape.clone();
    }

    public ElementType type() {
        return type;
    }

    /** 0 where the tensor is not quantised. */
    public float scale() {
        return scale;
    }

    public int zeroPoint() {
        return zeroPoint;
    }

    /** The number of elements. */
    public int elements() {
        return elements;
    }

    /** A new direct buffer in native byte order that holds the tensor. */
    public ByteBuffer newBuffer() {
        return ByteBuffer.allocateDirect(elements * type.bytes).order(ByteOrder.nativeOrder());
    }

    /**
     * Writes real values as the tensor holds them: halves round to even, and beyond the range of
     * whole numbers they saturate.
     *
     * @param real {@link #elements} values.
     * @param held from {@link #newBuffer}; its position stays.
     */
    public void write(float[] real, ByteBuffer held) {
        if (type == ElementType.FLOAT32) {
            held.asFloatBuffer().put(real, 0, elements);
            return;
        }
        float unit = scale == 0 ? 1 : scale;
        for (int i = 0; i < elements; i++) {
            double whole = Math.rint(real[i] / unit) + zeroPoint;
            int number = (int) Math.max(type.lowest, Math.min(type.highest, whole));
            if (type == ElementType.INT16) {
                held.putShort(2 * i, (short) number);
            } else {
                held.put(i, (byte) number);
            }
        }
    }

    /**
     * Reads what the tensor holds as real values.
     *
     * @param held from {@link #newBuffer}; its position stays.
     * @param real {@link #elements} values, overwritten.
     */
    public void read(ByteBuffer held, float[] real) {
        if (type == ElementType.FLOAT32) {
            held.asFloatBuffer().get(real, 0, elements);
            return;
        }
        float unit = scale == 0 ? 1 : scale;
        for (int i = 0; i < elements; i++) {
            real[i] = (whole(held, i) - zeroPoint) * unit;
        }
    }

    private int whole(ByteBuffer held, int i) {
        switch (type) {
            case INT16:
                return held.getShort(2 * i);
            case UINT8:
                return held.get(i) & 0xff;
            default:
                return held.get(i);
        }
    }

    @Override
    public String toString() {
        return type + " " + Arrays.toString(shape);
    }
}
