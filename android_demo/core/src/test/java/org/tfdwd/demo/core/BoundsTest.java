package org.tfdwd.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;

import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** What a benchmark may be asked for. */
public class BoundsTest {
    private static String refusal(final String text, final boolean threads) {
        return assertThrows(DemoException.class, new ThrowingRunnable() {
            @Override
            public void run() {
                int unused = threads ? Bounds.threads(text, 8) : Bounds.rounds(text);
            }
        }).getMessage();
    }

    @Test
    public void takesWhatThePhoneCanDo() {
        assertEquals(1, Bounds.threads("1", 8));
        assertEquals(8, Bounds.threads(" 8 ", 8));
        assertEquals(1, Bounds.rounds("1"));
        assertEquals(1000, Bounds.rounds("1000"));
    }

    @Test
    public void refusesTheRest() {
        for (String text : new String[] {"0", "-1", "9", "4294967297", "1.5", "", "two"}) {
            assertEquals("threads: expected a whole number of 1..8, got \"" + text + "\"",
                    refusal(text, true));
        }
        for (String text : new String[] {"0", "-5", "1001", "2147483647", "1e3"}) {
            assertEquals("rounds: expected a whole number of 1..1000, got \"" + text + "\"",
                    refusal(text, false));
        }
        assertEquals("rounds: expected a whole number of 1..1000, got \"99999999999999999999...\"",
                refusal("999999999999999999999999999", false));
    }
}
