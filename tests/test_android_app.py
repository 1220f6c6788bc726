"""The Android app as it was packed: what Android's own tools, and a JVM, say of the APK.

`make test-android` runs this; it needs what android_demo/install_tools installs. No phone and no
Gradle was ever at hand.
"""

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
import pytest
from PIL import Image

import tfdwd
from tfdwd import adb, lite

pytestmark = pytest.mark.android

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "android_demo"
MAIN = DEMO / "app/src/main"
BUILD = DEMO / "build"
ANDROID = "{http://schemas.android.com/apk/res/android}"
ABIS = ("arm64-v8a", "armeabi-v7a", "x86_64")
ASSETS = "android_demo/app/src/main/assets"  # of a copy, below tmp_path
Put = Callable[..., subprocess.CompletedProcess[str]]
LIBRARIES = [f"lib/{abi}/libtensorflowlite_jni.so" for abi in ABIS]


def tell(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def apk() -> Path:
    """The app, built anew, with the models that lie in the assets or else the demo's."""
    path = BUILD / "tfdwd-demo.apk"
    path.unlink(missing_ok=True)
    assert "SHA-256" in tell(sys.executable, DEMO / "build_apk")
    return path


@pytest.fixture(scope="session")
def versions() -> dict[str, str]:
    import tomllib  # not in Python 3.10, which build_apk does not run on

    return tomllib.loads((DEMO / "gradle/libs.versions.toml").read_text())["versions"]


@pytest.fixture(scope="session")
def dex(apk: Path) -> str:
    return tell("dexdump", "-d", "-f", apk)


def test_the_same_bytes_elsewhere(apk: Path, tmp_path: Path) -> None:
    """Another folder, another hour, another language: none of them is in the APK."""
    copy = tmp_path / "elsewhere/android_demo"
    shutil.copytree(DEMO, copy, ignore=shutil.ignore_patterns("build", "target"))
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    tell(sys.executable, copy / "build_apk", env=environment, cwd=tmp_path)
    assert (copy / "build/tfdwd-demo.apk").read_bytes() == apk.read_bytes()
    assert sorted(path.name for path in (copy / "build").iterdir()) == ["tfdwd-demo.apk"]


def test_what_the_manifest_says(apk: Path, versions: dict[str, str]) -> None:
    badging = tell("aapt2", "dump", "badging", apk)
    assert (
        f"package: name='{versions['applicationId']}' versionCode='{versions['versionCode']}' "
        f"versionName='{versions['versionName']}'"
    ) in badging
    assert f"\nsdkVersion:'{versions['minSdk']}'\n" in badging
    assert f"\ntargetSdkVersion:'{versions['targetSdk']}'\n" in badging
    assert "\nlaunchable-activity: name='org.tfdwd.demo.MainActivity'" in badging
    assert "native-code: " + " ".join(f"'{abi}'" for abi in ABIS) in badging
    # The camera app takes the picture and the gallery app reads it: this one needs nothing.
    permissions = tell("aapt2", "dump", "permissions", apk).split("\n")
    assert [line for line in permissions if line] == [f"package: {versions['applicationId']}"]
    assert "uses-permission" not in badging
    tree = tell("aapt2", "dump", "xmltree", apk, "--file", "AndroidManifest.xml")
    assert "extractNativeLibs" in tree and re.search(r"extractNativeLibs\S*=false", tree)
    entries = [re.search(r':name\S*="(.+?)"', part)[1] for part in tree.split("E: activity ")[1:]]
    assert entries == [".MainActivity", ".BenchmarkActivity"]
    assert not re.search(r"E: (service|receiver|provider|activity-alias) ", tree)


def test_the_release_build_differs_in_debuggable_alone(apk: Path) -> None:
    path = BUILD / "tfdwd-demo-release.apk"
    path.unlink(missing_ok=True)
    assert path.name in tell(sys.executable, DEMO / "build_apk", "--release")
    debug, release = (tell("aapt2", "dump", "badging", built) for built in (apk, path))
    assert debug.replace("application-debuggable\n", "", 1) == release != debug
    certificates = [tell("apksigner", "verify", "--print-certs", built) for built in (apk, path)]
    assert certificates[0] == certificates[1]
    with zipfile.ZipFile(apk) as one, zipfile.ZipFile(path) as other:
        assert one.namelist() == other.namelist()
        differing = [name for name in one.namelist() if one.read(name) != other.read(name)]
    assert differing == ["AndroidManifest.xml"]


def test_the_code(apk: Path, dex: str, versions: dict[str, str]) -> None:
    # 037 is what Android 7.0 reads; call sites came with 038.
    assert int(versions["minSdk"]) >= 24 and "DEX version '037'" in dex
    assert "invoke-virtual" in dex and "|invoke-custom" not in dex
    assert not re.search(r"invoke-(custom|polymorphic)|const-method-(handle|type)", dex)
    assert "LambdaMetafactory" not in dex and "StringConcatFactory" not in dex
    for name in ("MainActivity", "BenchmarkActivity"):
        found = re.search(
            rf"Class descriptor  : 'Lorg/tfdwd/demo/{name};'.*?Superclass        : '(\S+)'",
            dex,
            re.DOTALL,
        )
        assert found and found[1] == "Landroid/app/Activity;"
        assert f"org.tfdwd.demo.{name}.onCreate:(Landroid/os/Bundle;)V" in dex
    assert {name for name in zipfile.ZipFile(apk).namelist() if name.endswith(".dex")} == {
        "classes.dex"
    }


def test_the_libraries_have_what_the_code_calls(apk: Path, dex: str, tmp_path: Path) -> None:
    native = set()
    for found in re.finditer(
        r"in (L\S+?;)\)\n\s+name +: '(\w+)'\n\s+type +: '\S+'\n\s+access +: 0x\w+ \(.*NATIVE.*\)",
        dex,
    ):
        name = f"{found[1][1:-1]}/{found[2]}".replace("_", "_1").replace("/", "_")
        native.add(f"Java_{name}")
    assert len(native) > 30
    for library in LIBRARIES:
        with zipfile.ZipFile(apk) as content:
            path = Path(content.extract(library, tmp_path))
        assert path.read_bytes()[:4] == b"\x7fELF"
        symbols = {
            line.split()[7].partition("@")[0]
            for line in tell("readelf", "--dyn-syms", "--wide", path).split("\n")
            if len(line.split()) >= 8 and " FUNC " in line and " UND " not in line
        }
        assert native - symbols == set()
        # README: this library is laid out for pages of 4 KiB, so not for phones of 16 KiB.
        aligned = re.findall(r"LOAD .* (0x\w+)\n", tell("readelf", "-lW", path))
        assert {int(value, 16) for value in aligned} == {4096}


def test_what_is_mapped_is_stored_and_aligned(apk: Path) -> None:
    tell("zipalign", "-c", "-p", "4", apk)
    raw = apk.read_bytes()
    with zipfile.ZipFile(apk) as content:
        names = content.namelist()
        assert [name for name in names if name.startswith("lib/")] == LIBRARIES
        for entry in content.infolist():
            # Of the local header, which may pad otherwise than the directory at the end.
            lengths = struct.unpack_from("<HH", raw, entry.header_offset + 26)
            begin = entry.header_offset + 30 + sum(lengths)
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            mapped = entry.filename.endswith((".so", ".tflite", ".arsc"))
            assert (entry.compress_type == zipfile.ZIP_STORED) == mapped, entry.filename
            if mapped:
                # Where libraries lie in the file is right for pages of 16 KiB all the same.
                assert begin % (16384 if entry.filename.endswith(".so") else 4) == 0
            if entry.filename.endswith(".tflite"):
                held = raw[begin : begin + entry.file_size]
                assert held == (MAIN / entry.filename).read_bytes()
                assert lite.Model(held).inputs[0].shape[0] == 1
    assert {"assets/original.tflite", "assets/decomposed.tflite"} < set(names)


def test_the_signature(apk: Path) -> None:
    said = tell("apksigner", "verify", "--verbose", "--print-certs", apk)
    assert "(APK Signature Scheme v2): true" in said and "(JAR signing): false" in said
    key = ["-keystore", DEMO / "debug.keystore", "-storepass", "android"]
    listed = tell("keytool", "-list", "-v", *key)
    [digest] = re.findall(r"SHA256: (\S+)", listed)
    assert digest.replace(":", "").lower() in said
    assert "CN=tfdwd demo for debugging only" in said


def test_a_changed_apk_does_not_verify(apk: Path, tmp_path: Path) -> None:
    changed = bytearray(apk.read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed.apk").write_bytes(changed)
    done = subprocess.run(
        ["apksigner", "verify", tmp_path / "changed.apk"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "DOES NOT VERIFY" in done.stdout + done.stderr


def test_the_gradle_files_build_the_same(versions: dict[str, str]) -> None:
    module = (DEMO / "app/build.gradle.kts").read_text()
    build = (DEMO / "build_apk").read_text()
    for name in ("applicationId", "versionName"):
        assert f"{name} = libs.versions.{name}.get()\n" in module
    for name in ("minSdk", "targetSdk", "compileSdk", "versionCode"):
        assert f"{name} = libs.versions.{name}.get().toInt()\n" in module
    assert int(versions["minSdk"]) <= int(versions["targetSdk"]) <= int(versions["compileSdk"])
    # build_apk compiles against the oldest system: Android 7.0 is level 24.
    assert versions["minSdk"] == "24" and "android-all:7.0.0_r1" in build
    assert f'namespace = "{versions["applicationId"]}"\n' in module
    sources = re.findall(r'java\.srcDir\("(.+?)"\)', module)
    assert [(DEMO / "app" / source).resolve() for source in sources] == [
        DEMO / "core/src/main/java"
    ]
    assert 'SOURCES = (MAIN / "java", DEMO / "core/src/main/java")' in build
    assert (MAIN / "java/org/tfdwd/demo/MainActivity.java").is_file()
    assert 'noCompress += "tflite"\n' in module
    assert re.findall(r'"(\S+?)"', module.partition("listOf(")[2].partition(")")[0]) == list(ABIS)
    assert 'rootProject.file("debug.keystore")' in module
    # Gradle's own: only the build type "debug" is debuggable. Both are signed with that key.
    assert "isDebuggable" not in module
    assert 'getByName("release").signingConfig = signingConfigs.getByName("debug")\n' in module
    assert 'include(":app")' in (DEMO / "settings.gradle.kts").read_text()
    # No androidx, and the API that both runtimes have: the 1.x of LiteRT is TensorFlow Lite's.
    assert re.findall(r"(?:implementation|api)\((\S+)\)", module) == ["libs.litert"]
    assert versions["litert"].startswith("1.")
    assert "androidx" not in "".join(path.read_text() for path in MAIN.rglob("*.java"))
    manifest = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot()
    assert manifest.attrib == {} and manifest.find("uses-sdk") is None  # Gradle refuses a package


def test_the_layouts(apk: Path) -> None:
    """What the code looks for in a layout is there, and is what the code takes it for."""
    views = {
        "Button": ["TextView", "View"],
        "EditText": ["TextView", "View"],
        "ImageView": ["View"],
        "ProgressBar": ["View"],
        "TextView": ["View"],
    }
    for activity, layout in (("MainActivity", "main"), ("BenchmarkActivity", "benchmark")):
        code = (MAIN / f"java/org/tfdwd/demo/{activity}.java").read_text()
        assert f"setContentView(R.layout.{layout});" in code
        held = {}
        for view in ElementTree.parse(MAIN / f"res/layout/{layout}.xml").getroot().iter():
            if name := view.get(f"{ANDROID}id"):
                held[name.partition("/")[2]] = view.tag
            words = [view.get(f"{ANDROID}{what}", "") for what in ("text", "contentDescription")]
            assert all(word.startswith("@string/") or word.isdigit() or not word for word in words)
            if view.tag == "ImageView":
                assert view.get(f"{ANDROID}contentDescription")
        used = set(re.findall(r"R\.id\.(\w+)", code))
        assert used == set(held)
        casts = re.findall(r"\((\w+)\) findViewById\(R\.id\.(\w+)\)", code)
        assert casts
        for wanted, name in casts:
            assert wanted in [held[name], *views[held[name]]]


def test_the_layouts_inflate_and_are_drawn(apk: Path, tmp_path: Path) -> None:
    """By Android's own code, which complains of what it cannot resolve; the README shows them."""
    tell(sys.executable, DEMO / "draw_screens", f"--output={tmp_path}")
    for name in ("main.png", "benchmark.png"):
        for path in (tmp_path / name, DEMO / "screens" / name):
            with Image.open(path) as drawn:
                assert drawn.size == (720, 1280)
                assert len(drawn.getcolors(1 << 20)) > 50  # text and buttons, no empty screen
        assert f"screens/{name}" in (DEMO / "README.md").read_text()


def test_the_dex_translated_back_passes_the_tests_of_the_core(
    apk: Path, written: Path, tmp_path: Path
) -> None:
    core = DEMO / "core"
    listed = tmp_path / "classpath"
    tell(
        "mvn", "-q", "-B", "-f", core / "pom.xml", "test-compile",
        "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath",
        f"-Dmdep.outputFile={listed}",
    )  # fmt: skip
    translated = tmp_path / "translated.jar"
    said = tell(Path(sys.executable).parent / "enjarify", apk, "-o", translated)
    assert " 0 classes had errors" in said
    with zipfile.ZipFile(translated) as jar:
        entries = {name for name in jar.namelist() if name.startswith("org/tfdwd/demo/core/")}
    tests = core / "target/test-classes"
    classes = core / "target/classes"
    assert entries == {path.relative_to(classes).as_posix() for path in classes.rglob("*.class")}
    names = sorted(
        path.relative_to(tests).as_posix()[: -len(".class")].replace("/", ".")
        for path in tests.rglob("*Test.class")
    )
    assert names
    # With them the tests that run the demo's models on LiteRT are among them, too.
    models = written / "models"
    litert = Path(ai_edge_litert.__file__).parent / "libLiteRt.so"
    counts = {}
    for tested in (classes, translated):
        path = os.pathsep.join(map(str, (tested, tests, listed.read_text().strip())))
        said = tell(
            "java", "-cp", path, f"-Dtfdwd.litert={litert}", f"-Dtfdwd.models={models}",
            "org.junit.runner.JUnitCore", *names, cwd=core,
        )  # fmt: skip
        [counts[tested]] = re.findall(r"^OK \((\d+) tests\)$", said, re.MULTILINE)
        assert not re.search(r"^[.I]*I[.I]*$", said, re.MULTILINE)  # none was left out
    assert counts[classes] == counts[translated]


def run_build(tmp_path: Path, **environment: str) -> str:
    """What build_apk complains of."""
    done = subprocess.run(
        [sys.executable, DEMO / "build_apk"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr


def test_a_download_that_is_not_what_was_pinned(tmp_path: Path) -> None:
    cache = tmp_path / "tfdwd"
    cache.mkdir()
    (cache / "tensorflow-lite-2.16.1.aar").write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    said = run_build(tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert re.search(rf"expected the SHA-256 34b065\w+, got {digest}; delete it", said)


def test_a_machine_without_the_tools(tmp_path: Path) -> None:
    said = run_build(tmp_path, PATH=str(tmp_path))
    assert re.search(r"expected aapt2, .*android_demo/install_tools installs them", said)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Runs a copy of put_models, which fills tmp_path / ASSETS."""
    copy = tmp_path / "android_demo"
    copy.mkdir()
    shutil.copyfile(DEMO / "put_models", copy / "put_models")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # as from a shell: LiteRT keeps quiet then

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, copy / "put_models", *arguments],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip

    return run


def properties(assets: Path) -> dict[str, str]:
    lines = (assets / "models.properties").read_text().splitlines()
    return dict(line.split("=") for line in lines[1:])


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """It was, in one line."""
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().split("\n")) == 1


def test_put_models(tmp_path: Path, classifier: object, put: Put) -> None:
    """Any two models; nothing is replaced before all is known to be right."""
    assets = tmp_path / ASSETS
    model = tmp_path / "model.tflite"
    tfdwd.export(classifier, model)
    small = tmp_path / "int8.tflite"
    data = np.random.default_rng(0).random((32, 8, 8, 3), np.float32)
    tfdwd.export(classifier, small, quantize="int8", data=data)

    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"klasse {i}ä\n" for i in range(7)) + "\n")
    both = [f"--original={model}", f"--decomposed={small}"]
    done = put(*both, f"--labels={labels}", "--scale=0.00392157", "--offset=-1", "--resize=9")
    assert done.returncode == 0, done.stderr
    assert (assets / "original.tflite").read_bytes() == model.read_bytes()
    assert (assets / "decomposed.tflite").read_bytes() == small.read_bytes()
    assert (assets / "labels.txt").read_text("utf-8") == labels.read_text("utf-8").rstrip() + "\n"
    assert properties(assets) == {
        "task": "classes", "resize": "9", "scale": "0.00392157", "offset": "-1.0",
        "output_scale": "1.0", "output_offset": "0.0",
    }  # fmt: skip

    before = {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    labels.write_text("only one\n")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([both[0]], "or --original=FILE and --decomposed=FILE"),
        (["--resize=5"], "or --original=FILE and --decomposed=FILE"),
        ([*both, f"--folder={tmp_path}"], "expected --folder=FOLDER, or --original=FILE"),
        ([f"--folder={tmp_path}"], "original.tflite"),
        ([both[0], "--decomposed=none.tflite"], "no such file: none.tflite"),
        ([both[0], f"--decomposed={labels}"], "labels.txt is no .tflite model"),
        ([*both, f"--labels={labels}"], "expected 7 lines, one for each class, got 1"),
        ([*both, f"--samples={tmp_path / 'empty'}"], "empty: expected pictures"),
        ([*both, "--task=mask"], "expected an output (1, height, width, classes), got (1, 7)"),
        ([*both, "--output_scale=255"], "--output_offset: only for pictures"),
    ):
        refused(put(*arguments), message)
    assert {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()} == before
    assert [path.name for path in assets.parent.iterdir()] == ["assets"]


def test_put_models_of_masks_and_pictures(tmp_path: Path, put: Put) -> None:
    """What the shape leaves open is asked for."""
    import keras

    data = np.random.default_rng(0).random((32, 8, 8, 3), np.float32)

    def folder(name: str, channels: int) -> str:
        """As `tfdwd.compress` leaves it."""
        (tmp_path / name).mkdir()
        layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(channels, 3)]
        model = keras.Sequential(layers)
        tfdwd.export(model, tmp_path / name / "original.tflite")
        tfdwd.export(model, tmp_path / name / "student.tflite", quantize="int8", data=data)
        return f"--folder={tmp_path / name}"

    one, three, five = folder("one", 1), folder("three", 3), folder("five", 5)
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    assets = tmp_path / ASSETS
    for arguments, task, scale in (
        ([five], "mask", "1.0"),
        ([three, f"--labels={labels}"], "mask", "1.0"),
        ([one, "--task=mask"], "mask", "1.0"),
        ([three, "--task=picture", "--output_scale=255"], "picture", "255.0"),
    ):
        done = put(*arguments)
        assert done.returncode == 0, done.stderr
        held = properties(assets)
        assert (held["task"], held["output_scale"]) == (task, scale)
        assert (assets / "labels.txt").is_file() == (f"--labels={labels}" in arguments)
        source = Path(arguments[0].partition("=")[2])
        for name, copied in (("original", "original"), ("student", "decomposed")):
            copy = assets / f"{copied}.tflite"
            assert copy.read_bytes() == (source / f"{name}.tflite").read_bytes()
    for arguments, message in (
        ([one], "expected --task=mask or --task=picture: an output (1, 6, 6, 1) may be either"),
        ([three], "an output (1, 6, 6, 3) may be either"),
        ([three, "--task=picture", f"--labels={labels}"], "--labels: a picture has no classes"),
        ([five, "--task=picture"], "(1, height, width, 1 or 3), got (1, 6, 6, 5)"),
        ([five, "--task=classes"], "expected an output (1, classes), got (1, 6, 6, 5)"),
        ([five, f"--labels={labels}"], "expected 5 lines, one for each class, got 3"),
        (
            [f"--original={tmp_path}/one/original.tflite",
             f"--decomposed={tmp_path}/five/student.tflite"],
            "expected two models of the same output",
        ),
    ):  # fmt: skip
        refused(put(*arguments), message)


def test_put_models_knows_the_runtime_that_is_packed() -> None:
    found = re.search(r"^RUNTIME = \((.+?)\)", (DEMO / "put_models").read_text(), re.MULTILINE)
    version = found[1].replace(", ", ".")
    assert f"org.tensorflow:tensorflow-lite:{version}:aar" in (DEMO / "build_apk").read_text()


def test_the_computer_calls_the_app_by_its_names(versions: dict[str, str]) -> None:
    """`tfdwd.adb` and the app agree on what an extra is called."""
    code = (MAIN / "java/org/tfdwd/demo/BenchmarkActivity.java").read_text()
    assert versions["applicationId"] == adb.APP
    assert set(re.findall(r'getStringExtra\("(\w+)"\)', code)) == {"output", "threads", "rounds"}
