package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CancellationException;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** Models that tell classes apart, labels, and the agreement of two models. */
public class ModelTest {
    private static final Picture PICTURE = Fakes.plain(4, 4, 0x102030);
    private static final Listener NOBODY = new Fakes.Patience(1000);

    private static List<Integer> best(int count, float... scores) {
        List<Integer> classes = new ArrayList<Integer>();
        for (Answer answer : Answer.best(scores, count, Labels.NONE)) {
            assertEquals(scores[answer.index], answer.score, 0);
            assertEquals("class " + answer.index, answer.label);
            assertEquals(0, answer.colour);
            classes.add(answer.index);
        }
        return classes;
    }

    static Labels labels(String text) {
        return Labels.read(new ByteArrayInputStream(text.getBytes(StandardCharsets.UTF_8)));
    }

    @Test
    public void theBestComeFirstAndOfEqualOnesTheFirst() {
        assertEquals(Arrays.asList(2, 0, 4), best(3, 5, -1, 7, 1, 5, 5));
        assertEquals(Arrays.asList(1, 0), best(5, 1, 2));
        assertEquals(Arrays.asList(0, 1, 2, 3, 4), best(5, 0, 0, 0, 0, 0, 0));
        assertEquals(Arrays.asList(5, 4, 3, 2, 1), best(5, 0, 1, 2, 3, 4, 5));
        assertEquals(Arrays.asList(1), best(1, Float.NEGATIVE_INFINITY, 0));
    }

    @Test
    public void labelsAreLines() {
        Labels labels = labels("T-shirt\r\n Kleid \u00fc\n\nBag\n\n");
        assertEquals(4, labels.count());
        assertEquals("Kleid \u00fc", labels.of(1));
        assertEquals("", labels.of(2));
        assertEquals("Bag", labels.of(3));
        PreprocessingTest.refused("empty file", new ThrowingRunnable() {
            @Override
            public void run() {
                labels("\n\n");
            }
        });
        PreprocessingTest.refused("cannot read the labels: gone", new ThrowingRunnable() {
            @Override
            public void run() {
                Labels.read(new InputStream() {
                    @Override
                    public int read() throws IOException {
                        throw new IOException("gone");
                    }
                });
            }
        });
    }

    @Test
    public void runsAndTimesEachPhase() {
        Fakes.FakeClock clock = new Fakes.FakeClock(1000000);
        Fakes.Runner runner = new Fakes.Runner("", new ArrayList<String>(), clock, 7000000,
                Fakes.floats(1, 2), 0.25f, 0.75f);
        Model model = new Model("n", 12, runner, new Preprocessing(0, 1, 0),
                new Classes(labels("cat\ndog")));
        Result result = model.run(PICTURE, clock);
        assertEquals("[dog 0.75, cat 0.25]", result.finding.answers.toString());
        assertNull(result.finding.drawn);
        assertEquals(1, result.ms(Phase.PREPROCESSING), 0);
        assertEquals(8, result.ms(Phase.INFERENCE), 0);
        assertEquals(1, result.ms(Phase.POSTPROCESSING), 0);
        assertArrayEquals(new float[] {0.25f, 0.75f}, model.values(PICTURE), 0);
        assertEquals("n", model.name());
        assertEquals(12, model.bytes());
        assertFalse(runner.closed);
        model.close();
        assertTrue(runner.closed);
    }

    @Test
    public void modelsReadPictures() {
        final ModelRunner runner = new ModelRunner() {
            @Override
            public TensorSpec input() {
                return Fakes.floats(1, 7);
            }

            @Override
            public TensorSpec output() {
                return Fakes.floats(1, 3);
            }

            @Override
            public void run(java.nio.ByteBuffer input, java.nio.ByteBuffer output) {}

            @Override
            public void close() {}
        };
        PreprocessingTest.refused("expected a model that reads pictures", new ThrowingRunnable() {
            @Override
            public void run() {
                Fakes.classifier("n", runner);
            }
        });
    }

    @Test
    public void agreementOfClassesCountsPhotos() {
        Model one = Fakes.classifier("one", new Fakes.Runner(1, 2, 0));
        Model same = Fakes.classifier("same", new Fakes.Runner(1, 4.5f, 0));
        Model other = Fakes.classifier("other", new Fakes.Runner(3, 2, 0));
        assertEquals("Same answer on 2 of 2 samples.",
                Agreement.of(one, same, Arrays.asList(PICTURE, PICTURE), NOBODY).toString());
        assertEquals("Same answer on 0 of 1 samples.",
                Agreement.of(one, other, Arrays.asList(PICTURE), NOBODY).toString());
    }

    @Test
    public void agreementNeedsPhotosAndTheSameOutput() {
        final Model two = Fakes.classifier("two", new Fakes.Runner(1, 2));
        final Model three = Fakes.classifier("three", new Fakes.Runner(1, 2, 3));
        PreprocessingTest.refused("at least one picture", new ThrowingRunnable() {
            @Override
            public void run() {
                Agreement.of(two, two, Collections.<Picture>emptyList(), NOBODY);
            }
        });
        PreprocessingTest.refused("two with FLOAT32 [1, 2] and three with FLOAT32 [1, 3]",
                new ThrowingRunnable() {
                    @Override
                    public void run() {
                        Agreement.of(two, three, Arrays.asList(PICTURE), NOBODY);
                    }
                });
    }

    @Test
    public void agreementIsCancelled() {
        final Fakes.Runner runner = new Fakes.Runner(1, 2);
        final Model model = Fakes.classifier("two", runner);
        final Fakes.Patience patience = new Fakes.Patience(1);
        assertThrows(CancellationException.class, new ThrowingRunnable() {
            @Override
            public void run() {
                Agreement.of(model, model, Arrays.asList(PICTURE, PICTURE), patience);
            }
        });
        assertEquals(Arrays.asList("1/2"), patience.heard);
        assertEquals(2, runner.log.size());
    }
}
