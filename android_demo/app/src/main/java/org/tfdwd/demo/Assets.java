package org.tfdwd.demo;

import android.content.res.AssetFileDescriptor;
import android.content.res.AssetManager;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import org.tfdwd.demo.core.DemoException;
import org.tfdwd.demo.core.Labels;
import org.tfdwd.demo.core.Model;
import org.tfdwd.demo.core.Preprocessing;
import org.tfdwd.demo.core.Task;

/** What put_models left in the app: two models, what they are for, labels and samples. */
final class Assets {
    /** The models' names; the files are called so, with ".tflite". */
    static final List<String> MODELS = Arrays.asList("original", "decomposed");

    private static final String WAY_OUT = "; android_demo/put_models puts models into the app";

    private final AssetManager assets;

    Assets(AssetManager assets) {
        this.assets = assets;
    }

    /**
     * Opens both models.
     *
     * @param threads that each may use.
     * @return the two of {@link #MODELS}, to be closed by the caller.
     * @throws DemoException one is missing or cannot be run.
     */
    List<Model> open(int threads) {
        Properties properties = properties();
        Preprocessing preprocessing = Preprocessing.from(properties);
        Task task = Task.from(properties, labels());
        List<Model> opened = new ArrayList<Model>();
        try {
            for (String name : MODELS) {
                opened.add(open(name, threads, preprocessing, task));
            }
            return opened;
        } catch (RuntimeException error) {
            for (Model model : opened) {
                model.close();
            }
            throw error;
        }
    }

    private Model open(String name, int threads, Preprocessing preprocessing, Task task) {
        String file = name + ".tflite";
        try {
            MappedByteBuffer content = map(file);
            InterpreterRunner runner = new InterpreterRunner(content, threads);
            try {
                return new Model(name, content.capacity(), runner, preprocessing, task);
            } catch (DemoException error) {
                runner.close();
                throw error;
            }
        } catch (DemoException error) {
            throw new DemoException(file + ": " + error.getMessage(), error);
        }
    }

    private MappedByteBuffer map(String file) {
        try (AssetFileDescriptor asset = assets.openFd(file);
                FileInputStream stream = new FileInputStream(asset.getFileDescriptor())) {
            return stream.getChannel().map(
                    FileChannel.MapMode.READ_ONLY, asset.getStartOffset(), asset.getLength());
        } catch (IOException error) {
            throw new DemoException("the app does not hold it, or only compressed" + WAY_OUT,
                    error);
        }
    }

    private Properties properties() {
        Properties properties = new Properties();
        try (InputStream stream = assets.open("models.properties")) {
            properties.load(stream);
        } catch (IOException error) {
            throw new DemoException("the app does not hold models.properties" + WAY_OUT, error);
        }
        return properties;
    }

    private Labels labels() {
        try (InputStream stream = assets.open("labels.txt")) {
            return Labels.read(stream);
        } catch (FileNotFoundException error) {
            return Labels.NONE;
        } catch (IOException error) {
            throw new DemoException("cannot read labels.txt: " + error.getMessage(), error);
        }
    }

    /** The names of the sample pictures, sorted; there may be none. */
    List<String> samples() {
        try {
            String[] names = assets.list("samples");
            Arrays.sort(names);
            return Arrays.asList(names);
        } catch (IOException error) {
            throw new DemoException("cannot list the samples: " + error.getMessage(), error);
        }
    }

    /**
     * Reads a sample picture.
     *
     * @throws DemoException it is no picture.
     */
    Bitmap sample(String name) {
        try (InputStream stream = assets.open("samples/" + name)) {
            Bitmap bitmap = BitmapFactory.decodeStream(stream);
            if (bitmap != null) {
                return bitmap;
            }
        } catch (IOException error) {
            throw new DemoException("cannot read samples/" + name, error);
        }
        throw new DemoException("samples/" + name + " is no picture that this phone can read");
    }
}
