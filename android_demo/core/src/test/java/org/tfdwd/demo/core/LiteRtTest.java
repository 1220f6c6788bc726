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
 * The demo's models on LiteRT, with -Dtfdwd.litert=libLiteRt.so and -Dtfdwd.models=folder, the
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
            String[] described = golden.get("picture_" + i).split(" ");
            pictures.add(Golden.picture(Golden.unhex(described[2]), Integer.parseInt(described[0]),
                    Integer.parseInt(described[1])));
        }
    }

    private static Golden golden(String name) throws IOException {
        return new Golden(new FileInputStream(new File(FOLDER, name + ".properties")));
    }

    private static Classifier classifier(String name) {
        File file = new File(FOLDER, name + ".tflite");
        return new Classifier(name, file.length(), new LiteRt(LIBRARY, file),
                new Preprocessing(28, 1, 0), Labels.NONE);
    }

    private void equalsPython(String name, float tolerance) throws IOException {
        Golden golden = golden(name);
        LiteRt runner = new LiteRt(LIBRARY, new File(FOLDER, name + ".tflite"));
        assertEquals(golden.get("input"), described(runner.input()));
        assertEquals(golden.get("output"), described(runner.output()));
        runner.close();
        float[] expected = golden.floats("scores");
        int classes = expected.length / pictures.size();
        Classifier classifier = classifier(name);
        for (int i = 0; i < pictures.size(); i++) {
            float[] wanted = Arrays.copyOfRange(expected, i * classes, (i + 1) * classes);
            assertArrayEquals(name + ", picture " + i, wanted, classifier.scores(pictures.get(i)),
                    tolerance);
        }
        classifier.close();
        classifier.close();
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
        equalsPython("original_int8", 0);
        equalsPython("student_int8", 0);
    }

    @Test
    public void floatIsPythons() throws IOException {
        // The same kernels on the same bytes: nothing but the number of threads could differ, which
        // changes the order of no sum. Probabilities; 1e-6 is 8 units of the last place of 1.
        equalsPython("original_none", 1e-6f);
        equalsPython("student_none", 1e-6f);
        equalsPython("original_dynamic", 1e-6f);
    }

    @Test
    public void agreementIsThatOfPythonsScores() throws IOException {
        for (String[] pair : new String[][] {
            {"original_none", "student_none"}, {"original_none", "original_int8"},
        }) {
            Classifier first = classifier(pair[0]);
            Classifier second = classifier(pair[1]);
            Fakes.Patience listener = new Fakes.Patience(1000);
            Agreement agreement = Agreement.of(first, second, pictures, listener);
            first.close();
            second.close();
            float[] one = golden(pair[0]).floats("scores");
            float[] other = golden(pair[1]).floats("scores");
            float largest = 0;
            for (int i = 0; i < one.length; i++) {
                largest = Math.max(largest, Math.abs(one[i] - other[i]));
            }
            assertEquals(largest, agreement.largestDifference, 2e-6f);
            assertEquals(sameBest(one, other), agreement.same);
            assertEquals(pictures.size(), agreement.pictures);
            assertEquals(pictures.size(), listener.heard.size());
        }
    }

    private int sameBest(float[] one, float[] other) {
        int same = 0;
        int classes = one.length / pictures.size();
        for (int start = 0; start < one.length; start += classes) {
            int best = start;
            int otherBest = start;
            for (int i = start; i < start + classes; i++) {
                best = one[i] > one[best] ? i : best;
                otherBest = other[i] > other[otherBest] ? i : otherBest;
            }
            same += best == otherBest ? 1 : 0;
        }
        return same;
    }

    @Test
    public void theBenchmarkRunsAndLeavesAReport() throws IOException {
        List<Classifier> models =
                Arrays.asList(classifier("original_none"), classifier("student_none"));
        Samples samples = new Benchmark(Clock.SYSTEM, 3, 1)
                .run(models, pictures.get(11), new Fakes.Patience(1000));
        BenchmarkReport report = samples.report(Phase.INFERENCE, "a JVM", 1, true, "LiteRT",
                System.currentTimeMillis());
        StatisticsTest.keep("measured.json", report.toJson());
        for (Timing timing : report.timings) {
            // A network of some MMACs: between a microsecond and a second on any machine.
            assertTrue(timing.medianMs > 1e-3 && timing.medianMs < 1e3);
        }
        for (Classifier model : models) {
            model.close();
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
