package org.tfdwd.demo.core;

/** How long one model takes for one run; the fields are those of {@code tfdwd}'s Timing. */
public final class Timing {
    public final String name;
    /** Size of the .tflite file. */
    public final long bytes;
    public final double medianMs;
    public final double p10Ms;
    public final double p90Ms;
    /** Time of the first model over the time of this one: the median of the rounds' ratios. */
    public final double speedUp;
    /** Lower end of the 95 % bootstrap interval of {@link #speedUp}. */
    public final double speedUpLow;
    /** Upper end of it. */
    public final double speedUpHigh;
    private final double[] samplesMs;

    /** @param samplesMs one for each round. */
    Timing(String name, long bytes, double medianMs, double p10Ms, double p90Ms, double speedUp,
            double speedUpLow, double speedUpHigh, double... samplesMs) {
        if (!(0 < p10Ms && p10Ms <= medianMs && medianMs <= p90Ms)
                || !(0 < speedUpLow && speedUpLow <= speedUp && speedUp <= speedUpHigh)
                || Double.isInfinite(p90Ms) || Double.isInfinite(speedUpHigh)) {
            throw new DemoException("expected timings of " + name + " above 0 and in order, got "
                    + p10Ms + ", " + medianMs + ", " + p90Ms + " ms and a speed-up of " + speedUp
                    + " in " + speedUpLow + ".." + speedUpHigh + ": measure again");
        }
        this.name = name;
        this.bytes = bytes;
        this.medianMs = medianMs;
        this.p10Ms = p10Ms;
        this.p90Ms = p90Ms;
        this.speedUp = speedUp;
        this.speedUpLow = speedUpLow;
        this.speedUpHigh = speedUpHigh;
        this.samplesMs = samplesMs.clone();
    }

    /** Every sample, one for each round. */
    public double[] samplesMs() {
        return samplesMs.clone();
    }

    /** Whether the rounds differ too much to make much of a small difference. */
    public boolean noisy() {
        return p90Ms > 1.25 * p10Ms;
    }
}
