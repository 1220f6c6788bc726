package org.tfdwd.demo.core;

/**
 * Which pixels along one side make which new pixel, as {@code tf.image.resize} has it with
 * antialias: a triangle about the new pixel's centre, as wide as a new pixel is, or as an old one
 * where the picture grows. In single precision like there, so that the same pixels are hit.
 */
final class Resampling {
    /** For each new pixel: the first old one. */
    final int[] starts;
    /** For each new pixel: what the old ones from there on count; they add up to 1. */
    final float[][] weights;

    /**
     * @param from old pixels on the side.
     * @param to new pixels on the side.
     * @param first new pixel wanted.
     * @param count of new pixels wanted.
     */
    Resampling(int from, int to, int first, int count) {
        float step = (float) (1.0 / ((float) to / from));
        float reach = Math.max(step, 1f);
        starts = new int[count];
        weights = new float[count][];
        for (int i = 0; i < count; i++) {
            float centre = (first + i + 0.5f) * step;
            int start = clamp((int) Math.ceil(centre - reach - 0.5f), from - 1);
            int end = clamp((int) Math.floor(centre + reach - 0.5f), from - 1) + 1;
            starts[i] = start;
            weights[i] = triangle(start, end, centre, 1f / reach);
        }
    }

    private static int clamp(int pixel, int last) {
        return Math.max(0, Math.min(last, pixel));
    }

    private static float[] triangle(int start, int end, float centre, float slope) {
        float[] weights = new float[end - start];
        float total = 0;
        for (int i = 0; i < weights.length; i++) {
            float distance = Math.abs(start + i + 0.5f - centre) * slope;
            weights[i] = Math.max(0f, 1f - distance);
            total += weights[i];
        }
        float share = 1f / total;
        for (int i = 0; i < weights.length; i++) {
            weights[i] *= share;
        }
        return weights;
    }
}
