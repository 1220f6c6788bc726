"""A phone that is a folder: a stand-in for adb on the PATH, and one for benchmark_model.

No real phone was ever at hand; what adb and benchmark_model say is as documented.
"""

import dataclasses
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import keras
import numpy as np
import pytest

import tfdwd
from tfdwd import adb, benchmarking, logs
from tfdwd.errors import Error
from tfdwd.scripts import benchmark, common, micro_models, plan

ADB = """#!/bin/sh
# Acts like adb for one phone, whose /data/local/tmp and app's folder are $PHONE; the app is $APP.
echo "$*" >> "$PHONE/../calls"
if [ "$1" = devices ]; then
  printf 'List of devices attached\\n'; printf "$DEVICES"; echo; exit 0
fi
serial=$2; shift 2
calls=$(wc -l < "$PHONE/../calls")
if [ "$calls" -gt "${LOST_AFTER:-1000}" ]; then
  echo "adb: error: device '$serial' not found" >&2; exit 1
fi
here() {
  printf %s "$1" | sed "s#/data/local/tmp#$PHONE#g; s#/sdcard/Android/data/[a-z.]*/files#$PHONE#g"
}
case $1 in
  push) cp "$2" "$(here "$3")" && echo "$2: 1 file pushed" ;;
  pull) cp "$(here "$2")" "$3" && echo "$2: 1 file pulled" ;;
  shell) case $2 in
    "getprop ro.product.manufacturer") echo Maker ;;
    "getprop ro.product.model") echo Phone 3 ;;
    "getprop ro.product.cpu.abi") echo armeabi-v7a ;;
    "pm path "*) if [ -n "$APP" ]; then echo package:/data/app/base.apk; fi ;;
    "am start "*) echo "Starting: Intent { cmp=org.tfdwd.demo/.BenchmarkActivity }"
      set -- $2; "$APP" "$PHONE/$7" "${10}" "${13}" ;;
    "am force-stop "*) ;;
    *) sh -c "$(here "$2")" ;;
    esac ;;
esac
"""
TOOL = """#!/bin/sh
# Prints what benchmark_model does; model 0 takes 2 ms, model 1 takes 1 ms.
file=${1#--graph=}; threads=${2#--num_threads=}
test -s "$file" || exit 1
case $file in 0*) us=2000 ;; *) us=1000 ;; esac
echo "INFO: STARTING!
INFO: Num threads: [$threads]
INFO: Graph: [$file]
INFO: count=1 curr=9999 p5=9999 median=9999 p95=9999
INFO: count=50 first=1 curr=1 min=1 max=1 avg=$us std=1 p5=$us median=$us p95=$us
INFO: Inference timings in us: Init: 500, First inference: 3000, Warmup (avg): 1, Inference ...
INFO: Memory footprint delta from the start of the tool (MB): init=1 overall=1.5"
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the phone's /data/local/tmp."""
    folder, programs = tmp_path / "phone", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "adb").write_text(ADB)
    (programs / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("PHONE", str(folder))
    monkeypatch.setenv("DEVICES", "ABC123\\tdevice")
    return folder


def _tool(folder: Path, text: str = TOOL) -> Path:
    path = folder / "benchmark_model"
    path.write_text(text)
    return path


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs an app that is a script: it gets the file to write, the threads and the rounds."""

    def install(script: str) -> None:
        (tmp_path / "app").write_text("#!/bin/sh\n" + script)
        (tmp_path / "app").chmod(0o755)
        monkeypatch.setenv("APP", str(tmp_path / "app"))

    monkeypatch.setenv("APP", "")
    monkeypatch.setattr(adb, "_POLL_SECONDS", 0.01)
    return install


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, classifier: object) -> bytes:
    """The content of a .tflite file."""
    path = tmp_path_factory.mktemp("exported") / "a.tflite"
    tfdwd.export(classifier, path)
    return path.read_bytes()


@pytest.fixture
def files(tmp_path: Path, exported: bytes) -> dict[str, Path]:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tflite").write_bytes(exported)
    return {"original": tmp_path / "a.tflite", "a student": tmp_path / "b.tflite"}


def test_two_models_are_compared(phone: Path, files: dict[str, Path], tmp_path: Path) -> None:
    tool = _tool(tmp_path)
    tool.chmod(tool.stat().st_mode & ~stat.S_IXUSR)  # as a download is
    report = adb.benchmark(files, benchmark_model=tool, threads=2, rounds=3)
    first, second = report.timings
    assert (first.name, first.median_ms, first.load_ms, first.first_ms) == ("original", 2, 0.5, 3)
    assert (second.name, second.speed_up, second.peak_kib) == ("a student", 2, 1536)
    assert (report.device, report.threads, report.rounds) == ("Maker Phone 3", 2, 3)
    assert report.runtime.startswith("benchmark_model ")
    assert [run.ms for run in logs.read(report.to_json())] == [2, 1]
    assert list(phone.iterdir()) == []
    calls = (tmp_path / "calls").read_text()
    order = [line.partition("--graph=")[2][0] for line in calls.split("\n") if "--graph" in line]
    assert "".join(order) == "011001"
    assert "--num_threads=2 --use_xnnpack=true" in calls


@pytest.mark.parametrize(
    ("devices", "serial", "message"),
    [
        ("", None, "adb sees no phone: plug one in and switch on USB debugging"),
        ("A\\tdevice\\nB\\tdevice", None, r"adb sees 2 phones, A, B: name one with serial"),
        ("A\\tdevice", "B", "adb does not see the phone B, only A"),
        ("A\\tunauthorized", None, "phone A is locked to this computer: allow USB debugging"),
        ("A\\tno permissions (user in plugdev group?)", None, "phone A is no permissions"),
        ("A\\toffline", None, "phone A is offline, expected one that is ready"),
    ],
)
def test_which_phone(
    phone: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: str,
    serial: str | None,
    message: str,
) -> None:
    monkeypatch.setenv("DEVICES", devices)
    with pytest.raises(Error, match=message):
        adb.benchmark(files, benchmark_model=_tool(tmp_path), serial=serial)
    assert list(phone.iterdir()) == []


def test_one_of_two_phones(
    phone: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICES", "A\\tdevice\\nB\\tdevice")
    adb.benchmark(files, benchmark_model=_tool(tmp_path), serial="B", rounds=1)
    used = {line.split()[1] for line in (tmp_path / "calls").read_text().split("\n")[1:] if line}
    assert used == {"B"}


@pytest.mark.parametrize("after", range(4, 16, 2))
def test_the_connection_is_lost(
    phone: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    monkeypatch.setenv("LOST_AFTER", str(after))
    with pytest.raises(Error, match=r"the connection to phone ABC123 was lost: .* not found"):
        adb.benchmark(files, benchmark_model=_tool(tmp_path), rounds=2)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (
            "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version of "
            "this builtin might be supported.",
            "benchmark_model is too old for original: it says .*version '6'.*; get a newer one",
        ),
        (
            "/system/bin/sh: ./benchmark_model: not executable: 64-bit ELF file",
            "does not run on the phone, a armeabi-v7a: .* 64-bit ELF file'; get the one for",
        ),
        ("Segmentation fault", "original on the phone ABC123: .* 'Segmentation fault'"),
        ("Graph: [0.tflite]\nBenchmarking failed.", "no result for 0.tflite; .* Benchmarking fail"),
    ],
)
def test_a_tool_that_fails(
    phone: Path, files: dict[str, Path], tmp_path: Path, says: str, message: str
) -> None:
    tool = _tool(tmp_path, f'#!/bin/sh\necho "{says}"\nexit 1\n')
    with pytest.raises(Error, match=message):
        adb.benchmark(files, benchmark_model=tool)
    assert list(phone.iterdir()) == []


def test_what_is_missing_here(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Error, match="none: no such file; download or build benchmark_model"):
        adb.benchmark(files, benchmark_model=tmp_path / "none")
    with pytest.raises(Error, match="at least one model"):
        adb.benchmark({}, benchmark_model=_tool(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Error, match="no adb on the PATH: install Android's platform tools"):
        adb.benchmark(files, benchmark_model=_tool(tmp_path))


def test_a_phone_that_does_not_answer(
    phone: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_TIMEOUT_SECONDS", 1)
    with pytest.raises(Error, match="has not answered for 1 seconds to adb shell"):
        adb.benchmark(files, benchmark_model=_tool(tmp_path, "#!/bin/sh\nsleep 5\n"))


REPORT = tfdwd.BenchmarkReport(
    timings=(
        benchmarking.Timing("original", 2048, 2.0, 1.9, 2.1, 1.0, 1.0, 1.0),
        benchmarking.Timing("decomposed", 1024, 1.0, 0.9, 1.1, 2.0, 1.9, 2.1),
    ),
    device="Maker Phone 3",
    threads=4,
    rounds=7,
    runtime="TensorFlow Lite 2.16.1, Android 14",
    date="2026-11-24T00:00:00+00:00",
)


def test_the_app_times_its_models(
    phone: Path, app: Callable[[str], None], tmp_path: Path, capsys: Any
) -> None:
    # Slower than the first look at the file, and in two steps, as the app writes it.
    (tmp_path / "report.json").write_text(REPORT.to_json())
    app(f"""(sleep 0.2; sed "s/: 4,/: $2,/; s/: 7,/: $3,/" {tmp_path}/report.json > $1.part
mv $1.part $1) > /dev/null 2>&1 &""")
    arguments = ["--adb", "--app", "--threads=2", "--rounds=5", f"--json={tmp_path}/out.json"]
    assert _status(benchmark, *arguments) == 0
    expected = dataclasses.replace(REPORT, threads=2, rounds=5)
    assert tfdwd.BenchmarkReport.from_json((tmp_path / "out.json").read_text()) == expected
    assert capsys.readouterr().out == f"{expected}\n"
    assert list(phone.iterdir()) == []
    assert "force-stop" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "has no app org.tfdwd.demo: build it with android_demo/build_apk"),
        (
            """printf '{"error": "original.tflite: caf\\\\u00e9"}\n' > $1""",
            "says: original.*: café",
        ),
        ("printf '{}' > $1", "BenchmarkReport"),
        ("echo 'Error: Activity class does not exist.'", "does not start the app: .* not exist"),
        ("true", "has not finished after 1 seconds: fewer rounds"),
    ],
)
def test_an_app_that_fails(
    phone: Path,
    app: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    message: str,
) -> None:
    if script:
        app(script)
    monkeypatch.setattr(adb, "_TIMEOUT_SECONDS", 1)
    with pytest.raises(Error, match=message):
        adb.benchmark_app()
    assert list(phone.iterdir()) == []
    assert ("force-stop org.tfdwd.demo" in (tmp_path / "calls").read_text()) == (script == "true")


def test_the_app_when_the_connection_is_lost(
    phone: Path, app: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    app("true")
    monkeypatch.setenv("LOST_AFTER", "6")
    with pytest.raises(Error, match=r"the connection to phone ABC123 was lost: .* not found"):
        adb.benchmark_app()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--app"], "--app: expected --adb and no --model"),
        (["--adb", "--app", "--model=a.tflite"], "--app: expected --adb and no --model"),
        (["--adb", "--app", "--noxnnpack"], "--app: expected --adb and no --model"),
        (["--adb", "--app", "--rounds=0"], "--rounds"),
        (["--adb"], "expected --benchmark_model=FILE, .* or --app"),
        ([], "expected --model=FILE"),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], message: str, capsys: Any) -> None:
    assert _status(benchmark, *arguments) == 1
    assert re.search(message, capsys.readouterr().err)


def _status(script: Any, *arguments: str) -> int:
    for flag in script.FLAGS:
        script.FLAGS[flag].unparse()
    script.FLAGS.unparse_flags()
    return common.status(script.main, script.FLAGS, "", ["tfdwd", *arguments])


def test_a_plan_for_a_phone_from_the_shell(
    phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The commands of the help of tfdwd-micro-models, one after the other."""
    image = keras.Input((8, 8, 6))
    x = keras.layers.Conv2D(6, 3, name="conv")(image)
    model = cases.randomised(keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(64, 8, 8, 6)))
    _tool(tmp_path, TOOL.replace("case $file in 0*)", "case $(cat $file | wc -c) in 999999)"))
    monkeypatch.chdir(tmp_path)

    def run(script: Any, *arguments: str) -> str:
        done = _status(script, *arguments)
        out, error = capsys.readouterr()
        assert done == 0, error
        return out

    assert "micro: 12 .tflite files" in run(micro_models, "--model=model.keras", "--folder=micro")
    tool = "--benchmark_model=benchmark_model"
    run(benchmark, "--adb", tool, "--model=micro", "--rounds=1", "--json=phone.json")
    read = ["--folder=micro", "--log=phone.json", "--device=my phone", "--output=table.json"]
    assert "1 kinds of layers, the network in 1.000 ms" in run(micro_models, *read)
    data = ["--images=images.npy", "--output=plan.json"]
    made = run(plan, "--model=model.keras", *data, "--max_error=9", "--latency_table=table.json")
    assert "my phone" in made
    # On this phone all take 1 ms.
    assert "no stack was measured to be faster: the fastest takes 1.00 of its 1.0000 ms" in made

    for arguments, message in (
        ([], "expected --model, to write the files, or --log, to read"),
        (["--log=phone.json"], "expected --output=FILE.json for the latency table"),
    ):
        for flag in micro_models.FLAGS:
            micro_models.FLAGS[flag].unparse()
        words = ["tfdwd", "--folder=micro", *arguments]
        assert common.status(micro_models.main, micro_models.FLAGS, "", words) == 1
        assert message in capsys.readouterr().err
