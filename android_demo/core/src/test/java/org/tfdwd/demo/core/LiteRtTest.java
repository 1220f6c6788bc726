package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeNotNull;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.Before;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/**
 * Models of all tasks on LiteRT, with -Dtfdwd.litert=libLiteRt.so and -Dtfdwd.models=folder, the
 * folder that goldens.py --models made.
 */
public class LiteRtTest {
    private static final String LIBRARY = System.getProperty("tfdwd.litert");
    private static final String FOLDER = System.getProperty("tfdwd.models");

    private List<Picture> pictures;

    @Before
    public void needsModels() throws IOException {
        assumeNotNull(LIBRARY, FOLDER);
        Golden golden = golden("pictures");
        pictures = new ArrayList<Picture>();
        for (int i = 0; i < 12; i++) {
            pictures.add(golden.picture("picture_" + i));
        }
    }

    private static Golden golden(String name) throws IOException {
        return new Golden(new FileInputStream(new File(FOLDER, name + ".properties")));
    }

    private static Task task(String name) {
        // As goldens.py has it.
        return name.startsWith("picture") ? new Pixels(200, 20)
                : name.startsWith("mask") || name.startsWith("one_class") ? new Mask(Labels.NONE)
                : new Classes(Labels.NONE);
    }

    private static Model model(String name) {
        File file = new File(FOLDER, name + ".tflite");
        return new Model(name, file.length(), new LiteRt(LIBRARY, file),
                new Preprocessing(28, 1, 0), task(name));
    }

    private void equalsPython(String name, float tolerance) throws IOException {
        Golden golden = golden(name);
        LiteRt runner = new LiteRt(LIBRARY, new File(FOLDER, name + ".tflite"));
        assertEquals(described(golden.tensor("input")), described(runner.input()));
        assertEquals(described(golden.tensor("output")), described(runner.output()));
        runner.close();
        float[] expected = golden.floats("values");
        int count = expected.length / pictures.size();
        Model model = model(name);
        for (int i = 0; i < pictures.size(); i++) {
            float[] wanted = Arrays.copyOfRange(expected, i * count, (i + 1) * count);
            assertArrayEquals(name + ", picture " + i, wanted, model.values(pictures.get(i)),
                    tolerance);
            Picture drawn = model.run(pictures.get(i), Clock.SYSTEM).finding.drawn;
            if (drawn != null) {
                // A value may lie so near a half that it is rounded the other way; no place of a
                // mask lies so near another class.
                boolean exact = tolerance == 0 || !name.startsWith("picture");
                golden.assertDrawn("drawn_" + i, drawn, exact ? 0 : 1);
            }
        }
        model.close();
        model.close();
    }

    private static String described(TensorSpec tensor) {
        StringBuilder shape = new StringBuilder();
        for (int length : tensor.shape()) {
            shape.append(shape.length() == 0 ? "" : "x").append(length);
        }
        return tensor.type() + " " + shape + " " + tensor.scale() + " " + tensor.zeroPoint();
    }

    @Test
    public void int8IsPythonsBitForBit() throws IOException {
        for (String name : new String[] {"original", "student", "mask", "one_class", "picture"}) {
            equalsPython(name + "_int8", 0);
        }
    }

    @Test
    public void floatIsPythons() throws IOException {
        // The same kernels on the same bytes: nothing but the number of threads could differ, which
        // changes the order of no sum. All are about 1; 1e-6 is 8 units of its last place.
        for (String name : new String[] {"original", "student", "mask", "one_class", "picture"}) {
            equalsPython(name + "_none", 1e-6f);
        }
        equalsPython("original_dynamic", 1e-6f);
    }

    @Test
    public void agreementIsThatOfPythonsValues() throws IOException {
        Golden golden = golden("agreements");
        for (String[] pair : new String[][] {
            {"original_none", "student_none"}, {"original_none", "original_int8"},
            {"mask_none", "mask_int8"}, {"one_class_none", "one_class_int8"},
            {"picture_none", "picture_int8"},
        }) {
            Model first = model(pair[0]);
            Model second = model(pair[1]);
            Fakes.Patience listener = new Fakes.Patience(1000);
            Agreement agreement = Agreement.of(first, second, pictures, listener);
            first.close();
            second.close();
            assertEquals(golden.get(pair[0] + "." + pair[1]), agreement.toString());
            assertEquals(pictures.size(), listener.heard.size());
        }
    }

    @Test
    public void theBenchmarkRunsAndLeavesAReport() throws IOException {
        List<Model> models = Arrays.asList(model("original_none"), model("student_none"));
        Samples samples = new Benchmark(Clock.SYSTEM, 3, 1)
                .run(models, pictures.get(11), new Fakes.Patience(1000));
        BenchmarkReport report = samples.report(Phase.INFERENCE, "a JVM", 1, true, "LiteRT",
                System.currentTimeMillis());
        StatisticsTest.keep("measured.json", report.toJson());
        for (Timing timing : report.timings) {
            // A network of some MMACs: between a microsecond and a second on any machine.
            assertTrue(timing.medianMs > 1e-3 && timing.medianMs < 1e3);
        }
        for (Model model : models) {
            model.close();
        }
    }

    @Test
    public void theBenchmarkRunsOnMasksAndPictures() {
        for (String name : new String[] {"mask", "one_class", "picture"}) {
            List<Model> models = Arrays.asList(model(name + "_none"), model(name + "_int8"));
            Samples samples = new Benchmark(Clock.SYSTEM, 1, 1)
                    .run(models, pictures.get(11), new Fakes.Patience(1000));
            for (Phase phase : Phase.values()) {
                assertEquals(2, samples.report(phase, "", 1, true, "", 0).timings.size());
            }
            for (Model model : models) {
                model.close();
            }
        }
    }

    @Test
    public void aFileThatIsNoModelIsRefused() throws IOException {
        final File file = new File(FOLDER, "pictures.properties");
        PreprocessingTest.refused("LiteRT cannot", new ThrowingRunnable() {
            @Override
            public void run() {
                new LiteRt(LIBRARY, file);
            }
        });
    }
}
