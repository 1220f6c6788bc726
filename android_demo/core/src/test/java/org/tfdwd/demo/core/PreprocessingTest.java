package org.tfdwd.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import java.util.Properties;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

public class PreprocessingTest {
    private static final Preprocessing PLAIN = new Preprocessing(0, 1, 0);

    @Test
    public void aPlainColourStaysAndChannelsAreRedGreenBlue() {
        float[] values = PLAIN.apply(Fakes.plain(7, 5, 0x12010203), Fakes.floats(1, 2, 2, 3));
        assertArrayEquals(new float[] {1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3}, values, 0);
    }

    @Test
    public void cropsTheCentreOfAnInputThatIsNotSquare() {
        // Columns 0, 10, 20, 30 of a picture as large as the resized one: the middle two stay.
        int[] pixels = {0x000000, 0x0a0a0a, 0x141414, 0x1e1e1e,
            0x000000, 0x0a0a0a, 0x141414, 0x1e1e1e};
        float[] values = new Preprocessing(2, 1, 0)
                .apply(new Picture(pixels, 4, 2), Fakes.floats(1, 1, 2, 1));
        assertArrayEquals(new float[] {10, 20}, values, 0);
    }

    @Test
    public void resizeIsAtLeastTheInput() {
        refused("resize of at least 4", new ThrowingRunnable() {
            @Override
            public void run() {
                new Preprocessing(3, 1, 0).apply(Fakes.plain(9, 9, 0), Fakes.floats(1, 4, 4, 3));
            }
        });
    }

    @Test
    public void inputsThatAreNoPicturesAreRefused() {
        for (final int[] shape : new int[][] {{1, 4}, {1, 4, 4, 2}, {1, 4, 4}}) {
            refused("reads pictures", new ThrowingRunnable() {
                @Override
                public void run() {
                    PLAIN.apply(Fakes.plain(9, 9, 0), Fakes.floats(shape));
                }
            });
        }
    }

    @Test
    public void picturesHoldTheirPixels() {
        refused("3 x 2 pixels, got 5", new ThrowingRunnable() {
            @Override
            public void run() {
                new Picture(new int[5], 3, 2);
            }
        });
        refused("0 x 0 pixels", new ThrowingRunnable() {
            @Override
            public void run() {
                new Picture(new int[0], 0, 0);
            }
        });
    }

    @Test
    public void propertiesHaveDefaults() {
        Properties properties = new Properties();
        Picture grey = Fakes.plain(2, 2, 0x808080);
        TensorSpec one = Fakes.floats(1, 1, 1, 1);
        assertEquals(128, Preprocessing.from(properties).apply(grey, one)[0], 0);
        properties.setProperty("scale", "0.5");
        properties.setProperty("offset", " -1 ");
        assertEquals(63, Preprocessing.from(properties).apply(grey, one)[0], 0);
    }

    @Test
    public void propertiesAreNumbers() {
        for (final String[] wrong : new String[][] {
            {"resize", "large", "resize: expected a whole number, got 'large'"},
            {"scale", "", "scale: expected a finite number, got ''"},
            {"offset", "0,5", "offset: expected a finite number"},
            {"offset", "NaN", "finite"},
            {"scale", "Infinity", "scale: expected a finite number, got 'Infinity'"},
            {"resize", "-1", "0 pixels or more"},
        }) {
            final Properties properties = new Properties();
            properties.setProperty(wrong[0], wrong[1]);
            refused(wrong[2], new ThrowingRunnable() {
                @Override
                public void run() {
                    Preprocessing.from(properties);
                }
            });
        }
    }

    static void refused(String words, ThrowingRunnable work) {
        String message = assertThrows(DemoException.class, work).getMessage();
        assertTrue(message, message.contains(words));
    }
}
