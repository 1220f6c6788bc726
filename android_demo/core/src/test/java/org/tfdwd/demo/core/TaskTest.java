package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.Arrays;
import java.util.Properties;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** What outputs stand for; what is drawn of larger ones is tested in {@link DrawnGoldenTest}. */
public class TaskTest {
    private static final int RED = 0x800000;
    private static final int GREEN = 0x008000;
    private static final Fakes.FakeClock CLOCK = new Fakes.FakeClock(0);

    private static Properties properties(String... pairs) {
        Properties properties = new Properties();
        for (int i = 0; i < pairs.length; i += 2) {
            properties.setProperty(pairs[i], pairs[i + 1]);
        }
        return properties;
    }

    private static Finding find(Task task, Picture photo, TensorSpec output, float... values) {
        return Fakes.model("n", new Fakes.Runner(output, values), task).run(photo, CLOCK).finding;
    }

    private static String agreement(Task task, TensorSpec output, float[] one, float[] other) {
        Picture photo = Fakes.plain(2, 2, 0);
        return Agreement.of(Fakes.model("a", new Fakes.Runner(output, one), task),
                Fakes.model("b", new Fakes.Runner(output, other), task),
                Arrays.asList(photo, photo), new Fakes.Patience(9)).toString();
    }

    /** Of half the photo's brightness. */
    private static int over(int photo, int colour) {
        return 0xff000000 | (photo >> 1 & 0x7f7f7f) + (colour >> 1);
    }

    @Test
    public void theColoursAreThoseOfPascalVoc() {
        // The colour map as published: background, aeroplane, ..., person, ..., tv/monitor, void.
        int[] numbers = {0, 1, 2, 3, 4, 7, 8, 15, 20, 255};
        int[] colours = {0, 0xff800000, 0xff008000, 0xff808000, 0xff000080, 0xff808080, 0xff400000,
            0xffc08080, 0xff004080, 0xffe0e0c0};
        for (int i = 0; i < numbers.length; i++) {
            assertEquals(Integer.toHexString(colours[i]),
                    Integer.toHexString(Mask.argb(numbers[i])));
        }
    }

    @Test
    public void aMaskHasAColourForEachClassButTheFirst() {
        // Three places of classes 0, 1 and 2 and one where 1 and 2 are equal, so that 1 has it.
        Finding finding = find(new Mask(ModelTest.labels("none\ncat\ndog")),
                Fakes.plain(2, 2, 0x80203f), Fakes.floats(1, 2, 2, 3),
                9, 1, 2, 1, 9, 2, -3, -2, -1, 0, 5, 5);
        assertArrayEquals(new int[] {0xff80203f, over(0x80203f, RED), over(0x80203f, GREEN),
            over(0x80203f, RED)}, finding.drawn.argb);
        assertEquals("[cat 0.5, none 0.25, dog 0.25]", finding.answers.toString());
        assertEquals(0xff000000 | RED, finding.answers.get(0).colour);
        assertEquals(0, finding.answers.get(1).colour);
    }

    @Test
    public void aMaskOfOneClassIsAtProbabilitiesFromAHalfOn() {
        Finding finding = find(new Mask(Labels.NONE), Fakes.plain(2, 2, 0xffffff),
                Fakes.floats(1, 2, 2, 1), 0.5f, 0.49f, 0, 1);
        int covered = over(0xffffff, RED);
        assertArrayEquals(new int[] {covered, 0xffffffff, 0xffffffff, covered},
                finding.drawn.argb);
        assertEquals("[class 0 0.5]", finding.answers.toString());
        assertEquals(0xff000000 | RED, finding.answers.get(0).colour);
    }

    @Test
    public void whatTheModelDidNotSeeIsDark() {
        // The model sees the middle two of four columns.
        Finding finding = find(new Mask(Labels.NONE), Fakes.plain(4, 2, 0xc0c0c0),
                Fakes.floats(1, 1, 1, 2), 0, 1);
        int covered = over(0xc0c0c0, RED);
        int[] row = {0xff606060, covered, covered, 0xff606060};
        assertEquals(4, finding.drawn.width());
        assertEquals(2, finding.drawn.height());
        assertArrayEquals(row, Arrays.copyOf(finding.drawn.argb, 4));
        assertArrayEquals(row, Arrays.copyOfRange(finding.drawn.argb, 4, 8));
    }

    @Test
    public void aPictureIsDrawnAsItIs() {
        // 255 * 0.998 is 254.49; beyond 0..255 it saturates.
        Finding finding = find(new Pixels(255, 0), Fakes.plain(9, 9, 0),
                Fakes.floats(1, 1, 2, 3), 0, 1, 0.998f, -5, 7, 0.5f);
        assertArrayEquals(new int[] {0xff00fffe, 0xff00ff80}, finding.drawn.argb);
        assertEquals(2, finding.drawn.width());
        assertEquals(1, finding.drawn.height());
        assertTrue(finding.answers.isEmpty());
        finding = find(new Pixels(1, 10), Fakes.plain(9, 9, 0), Fakes.floats(1, 2, 1, 1), 1, 2);
        assertArrayEquals(new int[] {0xff0b0b0b, 0xff0c0c0c}, finding.drawn.argb);
    }

    @Test
    public void agreementOfMasksIsTheShareOfPlaces() {
        assertEquals("Same class at 75.0 % of the places of 2 samples.",
                agreement(new Mask(Labels.NONE), Fakes.floats(1, 1, 4, 2),
                        new float[] {0, 1, 0, 1, 0, 1, 1, 0},
                        new float[] {2, 3, 1, 0, 0, 9, 5, 4}));
        assertEquals("Same class at 50.0 % of the places of 2 samples.",
                agreement(new Mask(Labels.NONE), Fakes.floats(1, 1, 2, 1),
                        new float[] {0.9f, 0.1f}, new float[] {0.6f, 0.7f}));
    }

    @Test
    public void agreementOfPicturesIsTheMeanDifference() {
        // 0, 5 and, as 300 is white, 55.
        assertEquals("They differ by 20.00 of 255 on average of 2 samples.",
                agreement(new Pixels(1, 0), Fakes.floats(1, 1, 1, 3),
                        new float[] {7, 20, 300}, new float[] {7.4f, 15, 200}));
    }

    @Test
    public void nanIsNoValue() {
        final float[] values = {1, Float.NaN, 2};
        for (final Object[] pair : new Object[][] {
            {new Classes(Labels.NONE), Fakes.floats(1, 3)},
            {new Mask(Labels.NONE), Fakes.floats(1, 1, 1, 3)},
            {new Mask(Labels.NONE), Fakes.floats(1, 1, 3, 1)},
            {new Pixels(1, 0), Fakes.floats(1, 1, 3, 1)},
        }) {
            final Task task = (Task) pair[0];
            PreprocessingTest.refused("NaN as value 1 of its output", new ThrowingRunnable() {
                @Override
                public void run() {
                    find(task, Fakes.plain(2, 2, 0), (TensorSpec) pair[1], values);
                }
            });
            PreprocessingTest.refused("NaN as value 1 of its output", new ThrowingRunnable() {
                @Override
                public void run() {
                    agreement(task, (TensorSpec) pair[1], values, values);
                }
            });
        }
    }

    @Test
    public void outputsAreThoseOfTheTask() {
        for (final Object[] wrong : new Object[][] {
            {new Classes(Labels.NONE), new int[] {1, 2, 3, 4}, "(1, classes), got one of FLOAT32"},
            {new Mask(Labels.NONE), new int[] {1, 3}, "(1, height, width, classes), got one of"},
            {new Pixels(1, 0), new int[] {1, 3}, "(1, height, width, 1 or 3), got FLOAT32 [1, 3]"},
            {new Pixels(1, 0), new int[] {1, 2, 2, 4}, "(1, height, width, 1 or 3), got"},
            {new Classes(ModelTest.labels("a\nb")), new int[] {1, 3}, "its 3 classes, got 2"},
            {new Mask(ModelTest.labels("a\nb")), new int[] {1, 9, 9, 1}, "its 1 classes, got 2"},
        }) {
            PreprocessingTest.refused((String) wrong[2], new ThrowingRunnable() {
                @Override
                public void run() {
                    Fakes.model("n", new Fakes.Runner(Fakes.floats((int[]) wrong[1])),
                            (Task) wrong[0]);
                }
            });
        }
    }

    @Test
    public void propertiesNameTheTask() {
        Labels labels = ModelTest.labels("a\nb");
        assertEquals(Classes.class, Task.from(properties(), labels).getClass());
        assertEquals(Classes.class, Task.from(properties("task", "classes"), labels).getClass());
        assertEquals(Mask.class, Task.from(properties("task", " mask "), labels).getClass());
        Task picture = Task.from(properties("task", "picture", "output_scale", "2",
                "output_offset", "-1"), Labels.NONE);
        assertArrayEquals(new int[] {0xff131313}, find(picture, Fakes.plain(2, 2, 0),
                Fakes.floats(1, 1, 1, 1), 10).drawn.argb);
        picture = Task.from(properties("task", "picture"), Labels.NONE);
        assertArrayEquals(new int[] {0xff0a0a0a}, find(picture, Fakes.plain(2, 2, 0),
                Fakes.floats(1, 1, 1, 1), 10).drawn.argb);
        for (final String[] wrong : new String[][] {
            {"task", "boxes", "task: expected classes, mask or picture, got 'boxes'"},
            {"output_scale", "much", "output_scale: expected a finite number, got 'much'"},
            {"output_offset", "NaN", "output_offset: expected a finite number, got 'NaN'"},
        }) {
            PreprocessingTest.refused(wrong[2], new ThrowingRunnable() {
                @Override
                public void run() {
                    Task.from(properties("task", "picture", wrong[0], wrong[1]), Labels.NONE);
                }
            });
        }
    }
}
