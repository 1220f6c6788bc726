package org.tfdwd.demo.core;

/**
 * The whole numbers of {@code numpy.random.default_rng(0)}, so that the interval of a speed-up is
 * the same here and there: PCG64 (O'Neill, HMC-CS-2014-0905: a 128-bit linear congruential
 * generator, its halves xored and rotated), and Lemire's way to a range (arXiv 1805.10941).
 */
final class NumpyRandom {
    private static final long LOW = 0xffffffffL;
    private static final long MULTIPLIER_HIGH = 0x2360ed051fc65da4L;
    private static final long MULTIPLIER_LOW = 0x4385df649fccf645L;
    // What NumPy makes of the seed 0: default_rng(0).bit_generator.state.
    private static final long INCREMENT_HIGH = 0x418ddadb3af71a82L;
    private static final long INCREMENT_LOW = 0x588133bc447873a9L;
    private long high = 0x1aa1b5345996452dL;
    private long low = 0x09585eb7a69561e3L;
    // A draw has 64 bits and is used up in halves, the lower one first.
    private long kept;
    private boolean hasKept;

    /** A whole number of 0..count-1, as integers(0, count) draws each; count is at least 1. */
    int below(int count) {
        if (count == 1) {
            return 0; // NumPy draws nothing then
        }
        long product = next32() * count;
        if ((product & LOW) < count) {
            long threshold = (LOW - count + 1) % count;
            while ((product & LOW) < threshold) {
                product = next32() * count;
            }
        }
        return (int) (product >>> 32);
    }

    private long next32() {
        if (hasKept) {
            hasKept = false;
            return kept;
        }
        long drawn = next64();
        hasKept = true;
        kept = drawn >>> 32;
        return drawn & LOW;
    }

    private long next64() {
        long newLow = low * MULTIPLIER_LOW + INCREMENT_LOW;
        // Of unsigned numbers: the sum wrapped around if it is below what was added.
        long carry = newLow + Long.MIN_VALUE < INCREMENT_LOW + Long.MIN_VALUE ? 1 : 0;
        high = high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH
                + upperHalf(low, MULTIPLIER_LOW) + INCREMENT_HIGH + carry;
        low = newLow;
        return Long.rotateRight(high ^ low, (int) (high >>> 58));
    }

    /** The upper 64 bits of the product of two unsigned numbers. */
    private static long upperHalf(long a, long b) {
        long middle = (a >>> 32) * (b & LOW) + ((a & LOW) * (b & LOW) >>> 32);
        long other = (a & LOW) * (b >>> 32) + (middle & LOW);
        return (a >>> 32) * (b >>> 32) + (middle >>> 32) + (other >>> 32);
    }
}
