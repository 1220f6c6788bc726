package org.tfdwd.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.graphics.Bitmap;
import android.os.Bundle;
import android.provider.MediaStore;
import android.text.SpannableStringBuilder;
import android.text.Spanned;
import android.text.style.ForegroundColorSpan;
import android.view.View;
import android.widget.ImageView;
import android.widget.TextView;
import java.util.Locale;
import org.tfdwd.demo.core.Answer;
import org.tfdwd.demo.core.Phase;
import org.tfdwd.demo.core.Result;

/** A picture, and what both models say of it. */
public final class MainActivity extends Activity implements Work.Screen, View.OnClickListener {
    private static final int CAMERA = 1;
    private static final int GALLERY = 2;

    private Comparison comparison;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.main);
        for (int button : new int[] {R.id.camera, R.id.gallery, R.id.sample, R.id.benchmark}) {
            findViewById(button).setOnClickListener(this);
        }
        comparison = (Comparison) getLastNonConfigurationInstance();
        if (comparison == null) {
            comparison = new Comparison(new Assets(getAssets()));
        }
        comparison.attach(this);
    }

    @Override
    public Object onRetainNonConfigurationInstance() {
        return comparison;
    }

    @Override
    protected void onDestroy() {
        comparison.detach();
        if (!isChangingConfigurations()) {
            comparison.close();
        }
        super.onDestroy();
    }

    @Override
    public void onClick(View button) {
        int id = button.getId();
        if (id == R.id.camera) {
            // Without a file to write to, the camera app gives back a small picture: enough for
            // small networks, and it takes no permission.
            ask(new Intent(MediaStore.ACTION_IMAGE_CAPTURE), CAMERA, R.string.no_camera);
        } else if (id == R.id.gallery) {
            Intent choose = new Intent(Intent.ACTION_GET_CONTENT);
            choose.addCategory(Intent.CATEGORY_OPENABLE);
            choose.setType("image/*");
            ask(choose, GALLERY, R.string.no_gallery);
        } else if (id == R.id.sample) {
            comparison.showNextSample();
        } else {
            startActivity(new Intent(this, BenchmarkActivity.class));
        }
    }

    private void ask(Intent intent, int request, int withoutApp) {
        try {
            startActivityForResult(intent, request);
        } catch (ActivityNotFoundException error) {
            comparison.complain(getString(withoutApp));
        } catch (SecurityException error) { // a phone whose camera is locked
            comparison.complain(error.getMessage());
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent answer) {
        if (result != RESULT_OK || answer == null) {
            return; // the user came back without a picture
        }
        if (request == GALLERY && answer.getData() != null) {
            comparison.show(getContentResolver(), answer.getData());
        } else if (request == CAMERA && answer.hasExtra("data")) {
            comparison.show((Bitmap) answer.getParcelableExtra("data"));
        } else {
            comparison.complain(getString(R.string.no_picture));
        }
    }

    @Override
    public void update() {
        ImageView picture = (ImageView) findViewById(R.id.picture);
        picture.setImageBitmap(comparison.picture);
        findViewById(R.id.sample).setEnabled(comparison.hasSamples());
        findViewById(R.id.working).setVisibility(
                comparison.busy() ? View.VISIBLE : View.INVISIBLE);
        show(R.id.message, comparison.message);
        show(0, R.id.original, R.id.original_drawn);
        show(1, R.id.decomposed, R.id.decomposed_drawn);
        show(R.id.agreement, comparison.agreement == null ? null
                : getString(R.string.agreement, comparison.agreement));
    }

    private void show(int model, int view, int drawing) {
        boolean known = !comparison.results.isEmpty();
        show(view, known ? text(comparison.results.get(model)) : getString(R.string.nothing_yet));
        Bitmap drawn = known ? comparison.drawn.get(model) : null;
        ImageView shown = (ImageView) findViewById(drawing);
        shown.setImageBitmap(drawn);
        shown.setVisibility(drawn == null ? View.GONE : View.VISIBLE);
    }

    /** One model's times and answers, with the colours in which they are drawn. */
    private CharSequence text(Result result) {
        SpannableStringBuilder text = new SpannableStringBuilder(getString(R.string.times,
                result.ms(Phase.PREPROCESSING), result.ms(Phase.INFERENCE),
                result.ms(Phase.POSTPROCESSING)));
        for (Answer answer : result.finding.answers) {
            text.append(String.format(Locale.ROOT, "\n%6.3f  ", answer.score));
            if (answer.colour != 0) {
                text.append("\u25a0 ", new ForegroundColorSpan(answer.colour),
                        Spanned.SPAN_EXCLUSIVE_EXCLUSIVE);
            }
            text.append(answer.label);
        }
        return text;
    }

    private void show(int view, CharSequence text) {
        TextView shown = (TextView) findViewById(view);
        shown.setText(text);
        shown.setVisibility(text == null ? View.GONE : View.VISIBLE);
    }
}
