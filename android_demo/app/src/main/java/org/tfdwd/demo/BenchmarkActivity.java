package org.tfdwd.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;
import android.view.WindowManager;
import android.widget.EditText;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.io.File;
import java.util.Locale;
import org.tfdwd.demo.core.Benchmark;
import org.tfdwd.demo.core.BenchmarkReport;
import org.tfdwd.demo.core.Phase;
import org.tfdwd.demo.core.Timing;

/**
 * Times both models.
 *
 * <p>A computer starts it by {@code am start --es output NAME.json --es threads 1 --es rounds 30},
 * and finds the result, or {"error": "why"}, as NAME.json in the app's folder on the shared storage,
 * which adb can read.
 */
public final class BenchmarkActivity extends Activity
        implements Work.Screen, View.OnClickListener {
    private BenchmarkRun benchmark;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.benchmark);
        for (int button : new int[] {R.id.start, R.id.cancel, R.id.share}) {
            findViewById(button).setOnClickListener(this);
        }
        // A phone that goes to sleep is slow, or stops.
        getWindow().addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON);
        benchmark = (BenchmarkRun) getLastNonConfigurationInstance();
        if (benchmark == null) {
            benchmark = new BenchmarkRun(new Assets(getAssets()));
        }
        benchmark.attach(this);
        if (state == null) {
            obey(getIntent());
        }
    }

    @Override
    protected void onNewIntent(Intent intent) {
        obey(intent);
    }

    /** Does what a computer asks for, if one does. */
    private void obey(Intent intent) {
        String name = intent.getStringExtra("output");
        if (name == null) {
            return;
        }
        File folder = getExternalFilesDir(null);
        if (!name.matches("[A-Za-z0-9-]+\\.json") || folder == null) {
            benchmark.message = getString(R.string.no_output, name);
            update();
        } else if (benchmark.busy()) {
            BenchmarkRun.refuse(new File(folder, name), getString(R.string.busy));
        } else {
            set(R.id.threads, intent.getStringExtra("threads"), "1");
            set(R.id.rounds, intent.getStringExtra("rounds"), Integer.toString(Benchmark.ROUNDS));
            start(new File(folder, name));
        }
    }

    private void set(int field, String text, String otherwise) {
        EditText edit = (EditText) findViewById(field);
        edit.setText(text == null ? otherwise : text);
    }

    private String get(int field) {
        EditText edit = (EditText) findViewById(field);
        return edit.getText().toString();
    }

    private void start(File output) {
        benchmark.start(get(R.id.threads), get(R.id.rounds), output);
    }

    @Override
    public Object onRetainNonConfigurationInstance() {
        return benchmark;
    }

    @Override
    protected void onStop() {
        if (!isChangingConfigurations()) {
            benchmark.cancel(getString(R.string.left)); // the system may slow down what is not seen
        }
        super.onStop();
    }

    @Override
    protected void onDestroy() {
        benchmark.detach();
        if (!isChangingConfigurations()) {
            benchmark.close();
        }
        super.onDestroy();
    }

    @Override
    public void onClick(View button) {
        int id = button.getId();
        if (id == R.id.start) {
            start(null);
        } else if (id == R.id.cancel) {
            benchmark.cancel(getString(R.string.by_user));
        } else {
            Intent send = new Intent(Intent.ACTION_SEND);
            send.setType("application/json");
            send.putExtra(Intent.EXTRA_TEXT, benchmark.reports.get(Phase.INFERENCE).toJson());
            try {
                startActivity(Intent.createChooser(send, getString(R.string.share)));
            } catch (ActivityNotFoundException error) {
                benchmark.message = error.getMessage();
                update();
            }
        }
    }

    @Override
    public void update() {
        boolean busy = benchmark.busy();
        boolean known = !benchmark.reports.isEmpty();
        findViewById(R.id.start).setEnabled(!busy);
        findViewById(R.id.cancel).setEnabled(busy);
        findViewById(R.id.share).setEnabled(known);
        ProgressBar progress = (ProgressBar) findViewById(R.id.progress);
        progress.setVisibility(busy ? View.VISIBLE : View.INVISIBLE);
        progress.setMax(Math.max(benchmark.total, 1));
        progress.setProgress(benchmark.done);
        TextView message = (TextView) findViewById(R.id.message);
        message.setText(benchmark.message);
        message.setVisibility(benchmark.message == null ? View.GONE : View.VISIBLE);
        TextView report = (TextView) findViewById(R.id.report);
        report.setText(known ? text() : getString(R.string.no_report));
    }

    /** The report of each phase as a table. */
    private String text() {
        StringBuilder text = new StringBuilder();
        for (Phase phase : Phase.values()) {
            text.append(getString(phase == Phase.INFERENCE ? R.string.inference
                    : phase == Phase.PREPROCESSING ? R.string.preprocessing
                    : R.string.postprocessing));
            text.append(String.format(Locale.ROOT, "\n%-10s %8s %8s %8s\n",
                    "", "median", "p90", "speed-up"));
            for (Timing timing : benchmark.reports.get(phase).timings) {
                text.append(String.format(Locale.ROOT, "%-10s %8.3f %8.3f %7.2fx\n", timing.name,
                        timing.medianMs, timing.p90Ms, timing.speedUp));
                if (phase == Phase.INFERENCE && timing.speedUp != 1) {
                    text.append(String.format(Locale.ROOT, "%37s\n", String.format(Locale.ROOT,
                            "95 %%: %.2f..%.2f", timing.speedUpLow, timing.speedUpHigh)));
                }
            }
            text.append('\n');
        }
        BenchmarkReport report = benchmark.reports.get(Phase.INFERENCE);
        return text.append(getString(R.string.about, report.device, report.threads, report.rounds,
                report.runtime, report.date, BenchmarkRun.WIDTH, BenchmarkRun.HEIGHT)).toString();
    }
}
