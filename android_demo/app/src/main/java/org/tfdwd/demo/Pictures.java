package org.tfdwd.demo;

import android.content.ContentResolver;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.Matrix;
import android.media.ExifInterface;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.tfdwd.demo.core.DemoException;
import org.tfdwd.demo.core.Picture;

/** From the phone's pictures to those of the core, and back. */
final class Pictures {
    /** A photo is read at no more than about twice this, and no less. */
    private static final int LONGER_SIDE_PIXELS = 1024;

    private Pictures() {}

    /**
     * Reads a picture that another app offers, the right way up.
     *
     * @throws DemoException it is gone, may not be read, or is no picture.
     */
    static Bitmap read(ContentResolver resolver, Uri uri) {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inJustDecodeBounds = true;
        decode(resolver, uri, options);
        int longer = Math.max(options.outWidth, options.outHeight);
        options.inJustDecodeBounds = false;
        options.inSampleSize = 1;
        while (longer / (2 * options.inSampleSize) >= LONGER_SIDE_PIXELS) {
            options.inSampleSize *= 2;
        }
        Bitmap bitmap = decode(resolver, uri, options);
        if (bitmap == null) {
            throw new DemoException("this file is no picture that the phone can read");
        }
        return upright(bitmap, orientation(resolver, uri));
    }

    /** The pixels. */
    static Picture of(Bitmap bitmap) {
        int width = bitmap.getWidth();
        int height = bitmap.getHeight();
        int[] argb = new int[width * height];
        bitmap.getPixels(argb, 0, width, 0, 0, width, height);
        return new Picture(argb, width, height);
    }

    /** The way back; null of null. */
    static Bitmap bitmap(Picture picture) {
        return picture == null ? null : Bitmap.createBitmap(picture.argb, picture.width(),
                picture.height(), Bitmap.Config.ARGB_8888);
    }

    private static Bitmap decode(ContentResolver resolver, Uri uri, BitmapFactory.Options options) {
        try (InputStream stream = open(resolver, uri)) {
            return BitmapFactory.decodeStream(stream, null, options);
        } catch (IOException error) {
            throw unreadable(error);
        } catch (SecurityException error) {
            throw unreadable(error);
        }
    }

    /** As cameras write it; upright where a file does not say. */
    private static int orientation(ContentResolver resolver, Uri uri) {
        try (InputStream stream = open(resolver, uri)) {
            return new ExifInterface(stream).getAttributeInt(
                    ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL);
        } catch (IOException error) {
            return ExifInterface.ORIENTATION_NORMAL;
        }
    }

    private static InputStream open(ContentResolver resolver, Uri uri) throws IOException {
        InputStream stream = resolver.openInputStream(uri);
        if (stream == null) {
            throw new FileNotFoundException(uri.toString());
        }
        return stream;
    }

    private static DemoException unreadable(Exception error) {
        return new DemoException("cannot read this picture: " + error.getMessage(), error);
    }

    private static Bitmap upright(Bitmap bitmap, int orientation) {
        Matrix turn = new Matrix();
        switch (orientation) {
            case ExifInterface.ORIENTATION_FLIP_HORIZONTAL:
                turn.setScale(-1, 1);
                break;
            case ExifInterface.ORIENTATION_ROTATE_180:
                turn.setRotate(180);
                break;
            case ExifInterface.ORIENTATION_FLIP_VERTICAL:
                turn.setScale(1, -1);
                break;
            case ExifInterface.ORIENTATION_TRANSPOSE:
                turn.setRotate(90);
                turn.postScale(-1, 1);
                break;
            case ExifInterface.ORIENTATION_ROTATE_90:
                turn.setRotate(90);
                break;
            case ExifInterface.ORIENTATION_TRANSVERSE:
                turn.setRotate(-90);
                turn.postScale(-1, 1);
                break;
            case ExifInterface.ORIENTATION_ROTATE_270:
                turn.setRotate(-90);
                break;
            default:
                return bitmap;
        }
        return Bitmap.createBitmap(
                bitmap, 0, 0, bitmap.getWidth(), bitmap.getHeight(), turn, false);
    }
}
