package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
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

/** Answers, labels, and the agreement of two models. */
public class ClassifierTest {
    private static final Picture PICTURE = Fakes.plain(4, 4, 0x102030);
    private static final Listener NOBODY = new Fakes.Patience(1000);

    private static List<Integer> best(int count, float... scores) {
        List<Integer> classes = new ArrayList<Integer>();
        for (Answer answer : Answer.best(scores, count, Labels.NONE)) {
            assertEquals(scores[answer.index], answer.score, 0);
            assertEquals("class " + answer.index, answer.label);
            classes.add(answer.index);
        }
        return classes;
    }

    private static Labels labels(String text) {
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
    public void nanIsNoScore() {
        PreprocessingTest.refused("NaN for class 1", new ThrowingRunnable() {
            @Override
            public void run() {
                Fakes.classifier("", new Fakes.Runner(1, Float.NaN)).scores(PICTURE);
            }
        });
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
    public void classifiesAndTimesEachPhase() {
        Fakes.FakeClock clock = new Fakes.FakeClock(1000000);
        Fakes.Runner runner =
                new Fakes.Runner("", new ArrayList<String>(), clock, 7000000, 0.25f, 0.75f);
        Classifier classifier = new Classifier("n", 12, runner, new Preprocessing(0, 1, 0),
                labels("cat\ndog"));
        Result result = classifier.classify(PICTURE, clock);
        assertEquals("[dog 0.75, cat 0.25]", result.answers.toString());
        assertEquals(1, result.ms(Phase.PREPROCESSING), 0);
        assertEquals(8, result.ms(Phase.INFERENCE), 0);
        assertEquals(1, result.ms(Phase.POSTPROCESSING), 0);
        assertArrayEquals(new float[] {0.25f, 0.75f}, classifier.scores(PICTURE), 0);
        assertEquals("n", classifier.name());
        assertEquals(12, classifier.bytes());
        assertFalse(runner.closed);
        classifier.close();
        assertTrue(runner.closed);
    }

    @Test
    public void labelsAreAsManyAsTheClasses() {
        PreprocessingTest.refused("label for each of its 3 classes, got 2", new ThrowingRunnable() {
            @Override
            public void run() {
                new Classifier("n", 1, new Fakes.Runner(1, 2, 3), new Preprocessing(0, 1, 0),
                        labels("a\nb"));
            }
        });
    }

    @Test
    public void modelsReadPicturesAndGiveClasses() {
        for (final int[][] shapes : new int[][][] {{{1, 7}, {1, 3}}, {{1, 2, 2, 3}, {1, 2, 3}}}) {
            final ModelRunner runner = new ModelRunner() {
                @Override
                public TensorSpec input() {
                    return Fakes.floats(shapes[0]);
                }

                @Override
                public TensorSpec output() {
                    return Fakes.floats(shapes[1]);
                }

                @Override
                public void run(java.nio.ByteBuffer input, java.nio.ByteBuffer output) {}

                @Override
                public void close() {}
            };
            PreprocessingTest.refused("expected a", new ThrowingRunnable() {
                @Override
                public void run() {
                    Fakes.classifier("n", runner);
                }
            });
        }
    }

    @Test
    public void agreementCountsPicturesAndFindsTheLargestDifference() {
        Classifier one = Fakes.classifier("one", new Fakes.Runner(1, 2, 0));
        Classifier same = Fakes.classifier("same", new Fakes.Runner(1, 4.5f, 0));
        Classifier other = Fakes.classifier("other", new Fakes.Runner(3, 2, 0));
        Agreement agreement = Agreement.of(one, same, Arrays.asList(PICTURE, PICTURE), NOBODY);
        assertEquals(2, agreement.pictures);
        assertEquals(2, agreement.same);
        assertEquals(2.5, agreement.largestDifference, 0);
        agreement = Agreement.of(one, other, Arrays.asList(PICTURE), NOBODY);
        assertEquals(0, agreement.same);
        assertEquals(2, agreement.largestDifference, 0);
    }

    @Test
    public void agreementNeedsPicturesAndTheSameClasses() {
        final Classifier two = Fakes.classifier("two", new Fakes.Runner(1, 2));
        final Classifier three = Fakes.classifier("three", new Fakes.Runner(1, 2, 3));
        PreprocessingTest.refused("at least one picture", new ThrowingRunnable() {
            @Override
            public void run() {
                Agreement.of(two, two, Collections.<Picture>emptyList(), NOBODY);
            }
        });
        PreprocessingTest.refused("two with 2 and three with 3", new ThrowingRunnable() {
            @Override
            public void run() {
                Agreement.of(two, three, Arrays.asList(PICTURE), NOBODY);
            }
        });
    }

    @Test
    public void agreementIsCancelled() {
        final Fakes.Runner runner = new Fakes.Runner(1, 2);
        final Classifier model = Fakes.classifier("two", runner);
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
