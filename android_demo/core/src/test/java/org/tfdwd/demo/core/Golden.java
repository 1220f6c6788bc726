package org.tfdwd.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotNull;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Properties;

/** Reads what goldens.py wrote. */
final class Golden {
    private final Properties properties = new Properties();

    Golden(InputStream stream) throws IOException {
        try {
            properties.load(stream);
        } finally {
            stream.close();
        }
    }

    static Golden of(String name) throws IOException {
        return new Golden(stream(name + ".properties"));
    }

    static String text(String file) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        InputStream stream = stream(file);
        try {
            for (int unit = stream.read(); unit >= 0; unit = stream.read()) {
                bytes.write(unit);
            }
        } finally {
            stream.close();
        }
        return new String(bytes.toByteArray(), StandardCharsets.UTF_8);
    }

    private static InputStream stream(String file) {
        InputStream stream = Golden.class.getResourceAsStream("/golden/" + file);
        assertNotNull("/golden/" + file + " is not on the class path", stream);
        return stream;
    }

    String get(String key) {
        String value = properties.getProperty(key);
        assertNotNull(key, value);
        return value;
    }

    int number(String key) {
        return Integer.parseInt(get(key));
    }

    float real(String key) {
        return Float.parseFloat(get(key));
    }

    byte[] bytes(String key) {
        return unhex(get(key));
    }

    float[] floats(String key) {
        ByteBuffer bytes = ByteBuffer.wrap(bytes(key));
        float[] values = new float[bytes.remaining() / 4];
        bytes.asFloatBuffer().get(values);
        return values;
    }

    double[] doubles(String key) {
        ByteBuffer bytes = ByteBuffer.wrap(bytes(key));
        double[] values = new double[bytes.remaining() / 8];
        bytes.asDoubleBuffer().get(values);
        return values;
    }

    static byte[] unhex(String hex) {
        byte[] bytes = new byte[hex.length() / 2];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return bytes;
    }

    static Picture picture(byte[] rgb, int width, int height) {
        int[] argb = new int[width * height];
        for (int i = 0; i < argb.length; i++) {
            // The alpha is to be ignored, so that any will do.
            argb[i] = i << 24 | (rgb[3 * i] & 0xff) << 16 | (rgb[3 * i + 1] & 0xff) << 8
                    | rgb[3 * i + 2] & 0xff;
        }
        return new Picture(argb, width, height);
    }

    /** Of "width height bytes". */
    Picture picture(String key) {
        String[] parts = get(key).split(" ");
        return picture(unhex(parts[2]), Integer.parseInt(parts[0]), Integer.parseInt(parts[1]));
    }

    /** Fails unless it holds the same picture, each byte within a tolerance, and is opaque. */
    void assertDrawn(String key, Picture drawn, int tolerance) {
        Picture expected = picture(key);
        assertEquals(key, expected.width(), drawn.width());
        assertEquals(key, expected.height(), drawn.height());
        for (int i = 0; i < drawn.argb.length; i++) {
            assertEquals(key, 0xff, drawn.argb[i] >>> 24);
            for (int shift = 0; shift < 24; shift += 8) {
                assertEquals(key + ", pixel " + i, expected.argb[i] >> shift & 0xff,
                        drawn.argb[i] >> shift & 0xff, tolerance);
            }
        }
    }

    /** Of "TYPE 1x2x3 scale zeroPoint". */
    TensorSpec tensor(String key) {
        String[] parts = get(key).split(" ");
        String[] lengths = parts[1].split("x");
        int[] shape = new int[lengths.length];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = Integer.parseInt(lengths[i]);
        }
        return new TensorSpec(shape, ElementType.valueOf(parts[0]), Float.parseFloat(parts[2]),
                Integer.parseInt(parts[3]));
    }
}
