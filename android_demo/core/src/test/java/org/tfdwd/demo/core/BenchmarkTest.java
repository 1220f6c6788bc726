package org.tfdwd.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CancellationException;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** The loop; what it sums up to is tested in {@link StatisticsTest}. */
public class BenchmarkTest {
    private static final long MS = 1000000;
    private static final Picture PICTURE = Fakes.plain(4, 4, 0x102030);

    // A look at the clock takes as long as a whole sample, so that the phases without the model
    // need one run for each sample and take 20 ms.
    private final Fakes.FakeClock clock = new Fakes.FakeClock(20 * MS);
    private final List<String> log = new ArrayList<String>();

    private Model model(String name, long nanos) {
        return Fakes.classifier(name, new Fakes.Runner(name, log, clock, nanos));
    }

    private static BenchmarkReport report(Samples samples, Phase phase) {
        return samples.report(phase, "d", 2, true, "r", 1772392087000L);
    }

    @Test
    public void interleavesBackAndForthAfterTheWarmUp() {
        List<Model> models = Arrays.asList(model("a", MS), model("b", MS), model("c", MS));
        Fakes.Patience listener = new Fakes.Patience(1000);
        new Benchmark(clock, 3, 2).run(models, PICTURE, listener);
        // Two to warm up and one to see how long it takes; then the rounds.
        assertEquals("aaabbbccc" + "abc" + "cba" + "abc", String.join("", log));
        assertEquals(Arrays.asList("1/9", "2/9", "3/9", "4/9", "5/9", "6/9", "7/9", "8/9", "9/9"),
                listener.heard);
    }

    @Test
    public void timesThePhasesApart() {
        Samples samples = new Benchmark(clock, 4, 1)
                .run(Arrays.asList(model("a", 40 * MS), model("b", 10 * MS)), PICTURE,
                        new Fakes.Patience(1000));
        BenchmarkReport inference = report(samples, Phase.INFERENCE);
        assertEquals(20 + 40, inference.timings.get(0).medianMs, 1e-9);
        assertEquals(20 + 10, inference.timings.get(1).medianMs, 1e-9);
        assertEquals(2, inference.timings.get(1).speedUp, 1e-9);
        for (Phase phase : new Phase[] {Phase.PREPROCESSING, Phase.POSTPROCESSING}) {
            for (Timing timing : report(samples, phase).timings) {
                assertEquals(20, timing.p90Ms, 1e-9);
            }
        }
        assertEquals(4, inference.rounds);
        assertEquals(2, inference.threads);
        assertEquals("2026-03-01T19:08:07+00:00", inference.date);
    }

    @Test
    public void aSampleIsTheMeanOfRunsThatTakeLongEnough() {
        // The clock goes by the model alone here, and the other phases by real time.
        final Fakes.FakeClock own = new Fakes.FakeClock(0);
        Clock both = new Clock() {
            @Override
            public long nanos() {
                return own.now + System.nanoTime();
            }
        };
        Model quick = Fakes.classifier("q", new Fakes.Runner("q", log, own, 3 * MS));
        Samples samples =
                new Benchmark(both, 5, 1).run(Arrays.asList(quick), PICTURE, new Fakes.Patience(9));
        // 1 to warm up, 1 + 2 + 4 + 8 until they take 20 ms, then 8 for each of the samples; less
        // if the machine was held up meanwhile.
        assertTrue(log.toString(), log.size() <= 1 + 15 + 5 * 8 && log.size() >= 1 + 1 + 5);
        Timing timing = report(samples, Phase.INFERENCE).timings.get(0);
        assertTrue(timing.p10Ms >= 3);
        assertTrue(timing.medianMs < 6);
    }

    @Test
    public void isCancelledBetweenSamples() {
        final Fakes.Patience patience = new Fakes.Patience(3);
        assertThrows(CancellationException.class, new ThrowingRunnable() {
            @Override
            public void run() {
                new Benchmark(clock, 30, 1)
                        .run(Arrays.asList(model("a", MS), model("b", MS)), PICTURE, patience);
            }
        });
        assertEquals(3, patience.heard.size());
        assertEquals("aabb" + "abb", String.join("", log));
        log.clear();
        assertThrows(CancellationException.class, new ThrowingRunnable() {
            @Override
            public void run() {
                new Benchmark(clock, 30, 1)
                        .run(Arrays.asList(model("a", MS)), PICTURE, new Fakes.Patience(0));
            }
        });
        assertTrue(log.isEmpty());
    }

    @Test
    public void refusesWhatCannotBeTimed() {
        PreprocessingTest.refused("at least one model", new ThrowingRunnable() {
            @Override
            public void run() {
                new Benchmark(clock, 1, 1).run(Collections.<Model>emptyList(), PICTURE,
                        new Fakes.Patience(9));
            }
        });
        PreprocessingTest.refused("two called a", new ThrowingRunnable() {
            @Override
            public void run() {
                new Benchmark(clock, 1, 1).run(Arrays.asList(model("a", 1), model("a", 1)),
                        PICTURE, new Fakes.Patience(9));
            }
        });
        for (final int[] wrong : new int[][] {{0, 1}, {1, 0}}) {
            PreprocessingTest.refused("at least 1", new ThrowingRunnable() {
                @Override
                public void run() {
                    new Benchmark(clock, wrong[0], wrong[1]);
                }
            });
        }
    }

    @Test
    public void theSystemsClockGoesOn() {
        long before = Clock.SYSTEM.nanos();
        assertTrue(Clock.SYSTEM.nanos() >= before);
    }
}
