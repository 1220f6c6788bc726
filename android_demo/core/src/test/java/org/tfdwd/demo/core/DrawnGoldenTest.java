package org.tfdwd.demo.core;

import static org.junit.Assert.assertEquals;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.junit.runners.Parameterized;

/** From the tensor to what is shown as Python has it. */
@RunWith(Parameterized.class)
public class DrawnGoldenTest {
    private final Golden golden;

    public DrawnGoldenTest(String name) throws IOException {
        golden = Golden.of(name);
    }

    @Parameterized.Parameters(name = "{0}")
    public static List<Object[]> names() throws IOException {
        List<Object[]> names = new ArrayList<Object[]>();
        for (String name : Golden.of("cases").get("drawings").split(" ")) {
            names.add(new Object[] {name});
        }
        return names;
    }

    private Finding finding() {
        Properties properties = new Properties();
        properties.setProperty("task", golden.get("task"));
        properties.setProperty("output_scale", "200"); // as goldens.py has them
        properties.setProperty("output_offset", "20");
        TensorSpec output = golden.tensor("output");
        ByteBuffer held = output.newBuffer();
        held.duplicate().put(golden.bytes("held"));
        float[] values = new float[output.elements()];
        output.read(held, values);
        String[] crop = golden.get("crop").split(" ");
        return Task.from(properties, Labels.NONE).find(values, output,
                new Crop(golden.picture("photo"), golden.number("resize"),
                        Integer.parseInt(crop[0]), Integer.parseInt(crop[1])));
    }

    @Test
    public void drawsAsPython() {
        golden.assertDrawn("drawn", finding().drawn, 0);
    }

    @Test
    public void countsAsPython() {
        float[] shares = golden.floats("shares");
        List<Answer> answers = finding().answers;
        assertEquals(Math.min(5, shares.length), answers.size());
        for (Answer answer : answers) {
            assertEquals(shares[answer.index], answer.score, 0);
        }
    }
}
