package org.tfdwd.demo.core;

/** What a benchmark may be asked for: another app, or a slip of the finger, may ask for anything. */
public final class Bounds {
    /** Samples of each model: some minutes on a slow phone. */
    public static final int MAX_ROUNDS = 1000;

    private Bounds() {}

    /**
     * Threads for LiteRT.
     *
     * @param text what was asked for.
     * @param processors that the phone has.
     * @throws DemoException no whole number of 1..processors.
     */
    public static int threads(String text, int processors) {
        return number("threads", text, processors);
    }

    /**
     * Samples of each model.
     *
     * @param text what was asked for.
     * @throws DemoException no whole number of 1..{@link #MAX_ROUNDS}.
     */
    public static int rounds(String text) {
        return number("rounds", text, MAX_ROUNDS);
    }

    private static int number(String what, String text, int most) {
        try {
            int number = Integer.parseInt(text.trim());
            if (number >= 1 && number <= most) {
                return number;
            }
        } catch (NumberFormatException error) {
            // Said below, as of numbers that are out of bounds.
        }
        String shown = text.length() > 20 ? text.substring(0, 20) + "..." : text;
        throw new DemoException(what + ": expected a whole number of 1.." + most + ", got \"" + shown
                + "\"");
    }
}
