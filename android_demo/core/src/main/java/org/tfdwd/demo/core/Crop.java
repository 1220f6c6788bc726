package org.tfdwd.demo.core;

/** The part of a photo that a model sees: the photo is resized, then its centre is cropped. */
final class Crop {
    final Picture photo;
    private final int height;
    private final int width;
    private final int fullHeight;
    private final int fullWidth;

    /**
     * @param resize pixels of the shorter side before the crop; 0 for those of the crop.
     * @param height of the crop, in pixels.
     * @param width of the crop, in pixels.
     * @throws DemoException the resized photo is smaller than the crop.
     */
    Crop(Picture photo, int resize, int height, int width) {
        int shorter = Math.min(photo.height(), photo.width());
        int wanted = resize == 0 ? Math.max(height, width) : resize;
        this.photo = photo;
        this.height = height;
        this.width = width;
        fullHeight = scaled(photo.height(), wanted, shorter);
        fullWidth = scaled(photo.width(), wanted, shorter);
        if (fullHeight < height || fullWidth < width) {
            throw new DemoException("expected resize of at least " + Math.max(height, width)
                    + ", the model's input, got " + resize);
        }
    }

    private static int scaled(int length, int wanted, int shorter) {
        return (int) Math.rint((float) length * wanted / shorter);
    }

    /** Which rows of the photo make each row of the crop. */
    Resampling resampledRows() {
        return new Resampling(photo.height(), fullHeight, (fullHeight - height) / 2, height);
    }

    /** Which columns of the photo make each column of the crop. */
    Resampling resampledColumns() {
        return new Resampling(photo.width(), fullWidth, (fullWidth - width) / 2, width);
    }

    /**
     * The way back.
     *
     * @param count of equal parts into which the crop is cut from top to bottom.
     * @return for each row of the photo the part in which its middle lies; -1 outside the crop.
     */
    int[] rowParts(int count) {
        return parts(photo.height(), fullHeight, height, count);
    }

    /** The same from left to right. */
    int[] columnParts(int count) {
        return parts(photo.width(), fullWidth, width, count);
    }

    private static int[] parts(int photo, int full, int crop, int count) {
        int first = (full - crop) / 2;
        int[] parts = new int[photo];
        for (int i = 0; i < photo; i++) {
            // (i + 0.5) * full / photo is its middle on the resized photo; all is in 2 * photo parts
            // of a pixel here, so that it is exact.
            long middle = (2L * i + 1) * full - 2L * photo * first;
            boolean inside = middle >= 0 && middle < 2L * photo * crop;
            parts[i] = inside ? (int) (middle * count / (2L * photo * crop)) : -1;
        }
        return parts;
    }
}
