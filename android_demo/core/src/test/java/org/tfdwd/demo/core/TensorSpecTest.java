package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;

import java.nio.ByteBuffer;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

public class TensorSpecTest {
    @Test
    public void halvesRoundToEvenAndTheRangeSaturates() {
        TensorSpec tensor = new TensorSpec(new int[] {1, 6}, ElementType.INT8, 2, 1);
        ByteBuffer held = tensor.newBuffer();
        // Over the unit: 0.5, 1.5, -0.5, 126.5, 1e30, -1e30; plus 1.
        tensor.write(new float[] {1, 3, -1, 253, 2e30f, -2e30f}, held);
        byte[] bytes = new byte[6];
        held.duplicate().get(bytes);
        assertArrayEquals(new byte[] {1, 3, 1, 127, 127, -128}, bytes);
        float[] real = new float[6];
        tensor.read(held, real);
        assertArrayEquals(new float[] {0, 4, 0, 252, 252, -258}, real, 0);
    }

    @Test
    public void wholeNumbersThatAreNotQuantisedStandForThemselves() {
        TensorSpec tensor = new TensorSpec(new int[] {1, 3}, ElementType.UINT8, 0, 0);
        ByteBuffer held = tensor.newBuffer();
        tensor.write(new float[] {0, 200, 300}, held);
        float[] real = new float[3];
        tensor.read(held, real);
        assertArrayEquals(new float[] {0, 200, 255}, real, 0);
        assertEquals(0, held.position());
    }

    @Test
    public void buffersAreAsLargeAsTheTensor() {
        assertEquals(4 * 24, Fakes.floats(1, 2, 3, 4).newBuffer().capacity());
        assertEquals(2 * 6,
                new TensorSpec(new int[] {1, 6}, ElementType.INT16, 1, 0).newBuffer().capacity());
    }

    @Test
    public void shapesAreOfOnePicture() {
        for (final int[] shape : new int[][] {{}, {2, 3}, {1, -1, 4}, {1, 0}}) {
            PreprocessingTest.refused("batch of 1", new ThrowingRunnable() {
                @Override
                public void run() {
                    Fakes.floats(shape);
                }
            });
        }
    }

    @Test
    public void scalesAreOfWholeNumbers() {
        final float[][] wrong = {{0, 1}, {1, -1}, {1, Float.NaN}};
        for (final float[] kindAndScale : wrong) {
            PreprocessingTest.refused("scale", new ThrowingRunnable() {
                @Override
                public void run() {
                    ElementType type = kindAndScale[0] == 0 ? ElementType.FLOAT32
                            : ElementType.INT8;
                    new TensorSpec(new int[] {1, 3}, type, kindAndScale[1], 0);
                }
            });
        }
    }
}
