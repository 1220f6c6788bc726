package org.tfdwd.demo;

import android.content.ContentResolver;
import android.graphics.Bitmap;
import android.net.Uri;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.tfdwd.demo.core.Agreement;
import org.tfdwd.demo.core.Clock;
import org.tfdwd.demo.core.Listener;
import org.tfdwd.demo.core.Model;
import org.tfdwd.demo.core.Picture;
import org.tfdwd.demo.core.Result;

/** Both models on one picture. */
final class Comparison extends Work {
    /** Where a picture comes from; called off the main thread. */
    private interface Source {
        Bitmap read();
    }

    private final Assets assets;
    private final List<String> samples = new ArrayList<String>();
    private int nextSample;

    /** Open from the first step on; used off the main thread alone. */
    private List<Model> models = Collections.emptyList();

    /** What is shown; null before the first. */
    Bitmap picture;

    /** What the models say of it, one for each; empty where they could not. */
    List<Result> results = Collections.emptyList();

    /** What they draw, one for each; null where they draw nothing. */
    List<Bitmap> drawn = Collections.emptyList();

    /** How far both say the same of the samples; null where that is not known. */
    Agreement agreement;

    /** What went wrong last; null if nothing did. */
    String message;

    Comparison(Assets assets) {
        this.assets = assets;
        start(new Opening());
    }

    boolean hasSamples() {
        return !samples.isEmpty();
    }

    void showNextSample() {
        final String name = samples.get(nextSample);
        nextSample = (nextSample + 1) % samples.size();
        show(new Source() {
            @Override
            public Bitmap read() {
                return assets.sample(name);
            }
        });
    }

    void show(final ContentResolver resolver, final Uri uri) {
        show(new Source() {
            @Override
            public Bitmap read() {
                return Pictures.read(resolver, uri);
            }
        });
    }

    void show(final Bitmap bitmap) {
        show(new Source() {
            @Override
            public Bitmap read() {
                return bitmap;
            }
        });
    }

    void complain(String words) {
        message = words;
        update();
    }

    private void show(Source source) {
        start(new Showing(source));
    }

    @Override
    void free() {
        for (Model model : models) {
            model.close();
        }
        models = Collections.emptyList();
    }

    /** Opens the models and shows the first sample. */
    private final class Opening extends Step {
        private List<String> found = Collections.emptyList();

        @Override
        void work() {
            found = assets.samples();
            models = assets.open(1);
            // The first run of a model is slower than all others and would be shown as its time.
            Picture grey = new Picture(new int[64 * 64], 64, 64);
            for (Model model : models) {
                model.run(grey, Clock.SYSTEM);
            }
        }

        @Override
        void done() {
            samples.addAll(found);
            if (hasSamples()) {
                showNextSample();
                start(new Agreeing(found));
            }
        }

        @Override
        void failed(String words) {
            message = words;
        }
    }

    /** Runs both models on a picture. */
    private final class Showing extends Step {
        private final Source source;
        private final List<Result> found = new ArrayList<Result>();
        private final List<Bitmap> bitmaps = new ArrayList<Bitmap>();
        private Bitmap read;

        Showing(Source source) {
            this.source = source;
        }

        @Override
        void work() {
            read = source.read();
            Picture pixels = Pictures.of(read);
            for (Model model : models) {
                Result result = model.run(pixels, Clock.SYSTEM);
                found.add(result);
                bitmaps.add(Pictures.bitmap(result.finding.drawn));
            }
        }

        @Override
        void done() {
            picture = read;
            results = found;
            drawn = bitmaps;
            if (!found.isEmpty()) { // Else there are no models, and the message says why.
                message = null;
            }
        }

        @Override
        void failed(String words) {
            message = words;
        }
    }

    /** Compares the models' answers on all samples. */
    private final class Agreeing extends Step {
        private final List<String> names;
        private Agreement found;

        Agreeing(List<String> names) {
            this.names = names;
        }

        @Override
        void work() {
            List<Picture> pictures = new ArrayList<Picture>();
            for (String name : names) {
                pictures.add(Pictures.of(assets.sample(name)));
            }
            found = Agreement.of(models.get(0), models.get(1), pictures, new Listener() {
                @Override
                public void onProgress(int done, int total) {}

                @Override
                public boolean isCancelled() {
                    return false;
                }
            });
        }

        @Override
        void done() {
            agreement = found;
        }

        @Override
        void failed(String words) {
            message = words;
        }
    }
}
