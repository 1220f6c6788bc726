package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.junit.runners.Parameterized;

/** From the pixels to the tensor as Python has it. */
@RunWith(Parameterized.class)
public class PreprocessingGoldenTest {
    private final Golden golden;
    private final Picture picture;
    private final TensorSpec tensor;
    private final Preprocessing preprocessing;

    public PreprocessingGoldenTest(String name) throws IOException {
        golden = Golden.of(name);
        picture = Golden.picture(golden.bytes("rgb"), golden.number("width"),
                golden.number("height"));
        int size = golden.number("size");
        tensor = new TensorSpec(new int[] {1, size, size, golden.number("channels")},
                ElementType.valueOf(golden.get("type")), golden.real("unit"),
                golden.number("zero_point"));
        preprocessing = new Preprocessing(golden.number("resize"), golden.real("scale"),
                golden.real("offset"));
    }

    @Parameterized.Parameters(name = "{0}")
    public static List<Object[]> names() throws IOException {
        List<Object[]> names = new ArrayList<Object[]>();
        for (String name : Golden.of("cases").get("names").split(" ")) {
            names.add(new Object[] {name});
        }
        return names;
    }

    @Test
    public void resizesAsTensorFlow() {
        // goldens.py argues this bound; it is 2.4e-4 on a scale of 0..255.
        assertArrayEquals(golden.floats("resized"), preprocessing.resized(picture, tensor),
                2 * 16 / (float) (1 << 17));
    }

    @Test
    public void roundsTurnsGreyAndRescalesAsPython() {
        // To the last bit: no golden pixel is so near a half that the bound above matters.
        assertArrayEquals(golden.floats("values"), preprocessing.apply(picture, tensor), 0);
    }

    @Test
    public void quantisesAsPython() {
        ByteBuffer held = tensor.newBuffer();
        tensor.write(golden.floats("values"), held);
        byte[] bytes = new byte[held.remaining()];
        held.duplicate().get(bytes);
        assertArrayEquals(golden.bytes("held"), bytes);
    }

    @Test
    public void readsTheTensorAsPython() {
        ByteBuffer held = tensor.newBuffer();
        held.duplicate().put(golden.bytes("held"));
        float[] real = new float[tensor.elements()];
        tensor.read(held, real);
        assertArrayEquals(golden.floats("real"), real, 0);
    }
}
