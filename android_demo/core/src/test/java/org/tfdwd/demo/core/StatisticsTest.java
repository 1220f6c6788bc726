package org.tfdwd.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** Rounds, the report they sum up to and its JSON, as Python has them. */
public class StatisticsTest {
    private static final Pattern NUMBER = Pattern.compile("-?\\d+(\\.\\d+)?([eE][-+]?\\d+)?");

    @Test
    public void reportsAreThoseOfPythonToTheLastDigit() throws IOException {
        for (int rounds : new int[] {1, 2, 5, 30, 60}) {
            Golden golden = Golden.of("rounds_" + rounds);
            int models = golden.number("models");
            assertEquals(rounds, golden.number("rounds"));
            double[] flat = golden.doubles("seconds");
            double[][][] seconds = new double[Phase.values().length][models][rounds];
            for (int i = 0; i < flat.length; i++) {
                seconds[i / rounds / models][i / rounds % models][i % rounds] = flat[i];
            }
            Samples samples = new Samples(models(models), seconds);
            for (Phase phase : Phase.values()) {
                // In code points, so that this file is read right in any encoding.
                String device = "Gr\u00fc\u00dfe \"8\\9\" \ud83d\ude00";
                String json = samples.report(phase, device, 4, false, "LiteRT 1.2.3",
                        1772392087000L).toJson();
                String file =
                        "rounds_" + rounds + "." + phase.name().toLowerCase(Locale.ROOT) + ".json";
                assertEquals(file, withNumbersAsJava(Golden.text(file)), withNumbersAsJava(json));
                keep(file, json);
            }
        }
    }

    private static List<Model> models(int count) {
        List<Model> models = new ArrayList<Model>();
        for (int model = 0; model < count; model++) {
            models.add(new Model("model " + model, 1000 + model, new Fakes.Runner(1, 2),
                    new Preprocessing(0, 1, 0), new Classes(Labels.NONE)));
        }
        return models;
    }

    /** The two write the same number otherwise, as 1e-05 and 1.0E-5. */
    private static String withNumbersAsJava(String json) {
        Matcher matcher = NUMBER.matcher(json);
        StringBuffer same = new StringBuffer();
        while (matcher.find()) {
            matcher.appendReplacement(same,
                    Double.toString(Double.parseDouble(matcher.group())));
        }
        return matcher.appendTail(same).toString();
    }

    /** Leaves a report for Python to read, in the folder -Dtfdwd.output if that is given. */
    static void keep(String file, String json) throws IOException {
        String folder = System.getProperty("tfdwd.output");
        if (folder != null) {
            FileOutputStream stream = new FileOutputStream(new File(folder, file));
            stream.write(json.getBytes(StandardCharsets.US_ASCII));
            stream.close();
        }
    }

    @Test
    public void drawsThoseOfNumpy() throws IOException {
        Golden golden = Golden.of("draws");
        for (int count : new int[] {2, 7, 30, 3 << 29}) {
            NumpyRandom random = new NumpyRandom();
            for (String expected : golden.get(Integer.toString(count)).split(" ")) {
                assertEquals(Integer.parseInt(expected), random.below(count));
            }
        }
        assertEquals(0, new NumpyRandom().below(1));
    }

    @Test
    public void percentilesLieBetweenTwoValues() {
        double[] values = {40, 10, 30, 20};
        assertEquals(10, Statistics.percentile(values, 0), 0);
        assertEquals(13, Statistics.percentile(values, 10), 1e-12);
        assertEquals(25, Statistics.percentile(values, 50), 1e-12);
        assertEquals(37, Statistics.percentile(values, 90), 1e-12);
        assertEquals(40, Statistics.percentile(values, 100), 0);
        assertEquals(25, Statistics.median(values), 0);
        assertEquals(10, values[1], 0);
        // What numpy.percentile gives; 0.2 + 0.5 * 0.9 is 0.6499999999999999.
        assertEquals(0.65, Statistics.percentile(new double[] {0.2, 0.7}, 90), 0);
    }

    @Test
    public void aClockThatStandsStillIsNoMeasurement() {
        PreprocessingTest.refused("measure again", new ThrowingRunnable() {
            @Override
            public void run() {
                Statistics.timing("n", 1, new double[] {0, 0}, new double[] {0, 0});
            }
        });
    }

    @Test
    public void noiseIsAQuarterBetweenTheTenths() {
        assertFalse(new Timing("n", 1, 1, 1, 1.25, 1, 1, 1).noisy());
        assertTrue(new Timing("n", 1, 1, 1, 1.26, 1, 1, 1).noisy());
    }
}
