package org.tfdwd.demo;

import android.app.Activity;

public final class MainActivity extends Activity {}
