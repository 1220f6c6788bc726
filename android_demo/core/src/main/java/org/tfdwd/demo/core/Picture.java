package org.tfdwd.demo.core;

/** A picture of opaque pixels. */
public final class Picture {
    /** As given; not to be changed. */
    public final int[] argb;
    private final int width;
    private final int height;

    /**
     * @param argb height * width pixels, row by row, 0xAARRGGBB as Android's {@code
     *     Bitmap.getPixels} gives them; alpha is ignored. Not copied: leave it unchanged.
     * @throws DemoException another number of pixels, or none.
     */
    public Picture(int[] argb, int width, int height) {
        if (width < 1 || height < 1 || argb.length != (long) width * height) {
            throw new DemoException("expected " + width + " x " + height + " pixels, got "
                    + argb.length);
        }
        this.argb = argb;
        this.width = width;
        this.height = height;
    }

    public int width() {
        return width;
    }

    public int height() {
        return height;
    }
}
