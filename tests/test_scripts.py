import inspect
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import tfdwd
from tfdwd import children, lite, reporting
from tfdwd.errors import Error
from tfdwd.plans import LayerPlan
from tfdwd.scripts import (
    benchmark,
    common,
    compress,
    decompose,
    evaluate,
    export,
    micro_models,
    plan,
    tradeoff,
    train,
)

SCRIPTS = {
    "compress": compress,
    "decompose": decompose,
    "plan": plan,
    "tradeoff": tradeoff,
    "export": export,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "micro_models": micro_models,
    "train": train,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier):
    """A trained network, labelled images, and files that are no such thing."""
    folder = tmp_path_factory.mktemp("scripts")
    classifier.save(folder / "model.keras")
    images = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
    labels = np.argmax(classifier(images), axis=1)
    labels[:10] = (labels[:10] + 1) % 7  # 30 of 40 are right.
    np.savez(folder / "data.npz", x=images, y=labels)
    np.savez(folder / "images.npz", x=images)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    (folder / "text.keras").write_text("no model")
    (folder / "text.h5").write_text("no model")
    (folder / "text.tflite").write_text("no model")
    (folder / "text.npz").write_text("no arrays")
    (folder / "saved_model").mkdir()
    (folder / "link.keras").symlink_to("text.keras")
    layer = LayerPlan("x", False, "why", "", 0, 0, 9, 9, 9, 9)
    plan = tfdwd.Plan((layer,), "", 1.0, 1.0, 0.0, "none", 1, "", "")
    (folder / "fine.json").write_text(plan.to_json())
    (folder / "plan.json").write_text(plan.to_json().replace('"rank": 0', '"rank": "0"'))
    return folder


def call(name, *arguments):
    """Runs a script in this process."""
    script = SCRIPTS[name]
    script.FLAGS.unparse_flags()
    for flag in script.FLAGS:
        script.FLAGS[flag].unparse()
    return common.status(script.main, script.FLAGS, script.__doc__, [f"tfdwd-{name}", *arguments])


def process(name, *arguments, cwd):
    command = [sys.executable, "-m", f"tfdwd.scripts.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_scripts_work_as_processes(folder, tmp_path, monkeypatch, pytestconfig):
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    data = [f"--images={folder}/data.npz", "--images_key=x"]
    labels = [f"--labels={folder}/data.npz", "--labels_key=y"]
    model = f"--model={folder}/model.keras"

    exported = process("export", model, *data, "--output=model.tflite", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "against Keras on 40 images" in exported.stdout
    [log] = exported.stderr.splitlines()  # One of ours, and none of TensorFlow's.
    assert log.endswith(f"wrote model.tflite, {(tmp_path / 'model.tflite').stat().st_size} bytes")
    assert lite.Model(tmp_path / "model.tflite").outputs[0].name == "scores"

    evaluated = process(
        "evaluate", "--model=model.tflite", *data, *labels, "--json=e.json", cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.startswith("top-1 0.7500, top-5 ")
    assert evaluated.stderr == ""
    assert json.loads((tmp_path / "e.json").read_text())["count"] == 40

    # The command as it is installed, and the processes that it starts, run nothing from here.
    (tmp_path / "tqdm.py").write_text("raise SystemExit('run')")
    command = Path(sys.executable).with_name("tfdwd-benchmark")
    own = ["--model=a=model.tflite", "--model=model.tflite", "--rounds=2", "--json=b.json"]
    timed = subprocess.run([command, *own], capture_output=True, text=True, cwd=tmp_path)
    assert timed.returncode == 0, timed.stderr
    (tmp_path / "tqdm.py").unlink()
    assert [line.split()[0] for line in timed.stdout.splitlines()[2:4]] == ["a", "model"]
    assert json.loads((tmp_path / "b.json").read_text())["rounds"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "e.json", "model.tflite"]


def test_errors_of_a_process_are_one_line_and_status_1(folder, tmp_path, monkeypatch, pytestconfig):
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    wrong = {
        "export": ["--output=out.tflite", f"--model={folder}/text.keras"],
        "evaluate": [f"--model={folder}/none.keras", f"--images={folder}/images.npy"],
        "benchmark": [f"--model={folder}/text.tflite", "--json=out.json"],
    }
    for name, arguments in wrong.items():
        result = process(name, *arguments, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert result.stderr.startswith(f"{name}: ")
    assert list(tmp_path.iterdir()) == []


L = "--labels={}/labels.npy"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("benchmark", ["--model={}/m.tflite", "--adb"], "expected --benchmark_model=FILE"),
        ("benchmark", ["--adb", "--accelerator=gpu"], "--accelerator: expected no --adb"),
        ("benchmark", ["--accelerator=tpu"], "--accelerator=tpu"),
        ("benchmark", ["--profile={}/none.log"], "--profile: no such file: .*none.log"),
        ("benchmark", ["--profile={}/text.keras", "--adb"], "--profile: expected no --adb, --csv"),
        ("benchmark", ["--profile={}/text.keras"], "got no tables of operators"),
        ("benchmark", ["--plan={}/fine.json"], "--plan and --model_explorer: expected --profile"),
        ("export", ["--output=o.tflite"], "--model must have a value"),
        ("export", ["--modle=x"], "Unknown command line flag 'modle'"),
        ("export", ["--model=x", "--output=y", "extra"], "got the argument 'extra'; see --help"),
        ("export", ["--model={}/none.keras", "--output=o.tflite"], "no such file: .*none.keras"),
        ("export", ["--model={}/saved_model", "--output=o.tflite"], "is a folder, not a .keras"),
        # All that follow would fail to load the model, but do not get so far.
        ("export", ["--model={}/text.keras", "--output=n/o.tflite"], "--output: .* not exist"),
        ("export", ["--model={}/text.keras", "--output=o.lite"], r"--output: .* ends in \.tflite"),
        ("export", ["--model={}/text.keras", "--output=."], "it is a folder"),
        (
            "decompose",
            ["--model={}/text.keras", "--output=s.keras", "--report=none/r.json"],
            "--report: cannot write none/r.json: its folder does not exist",
        ),
        (
            "decompose",
            ["--model={}/text.keras", "--output=s.keras", "--report=./s.keras"],
            "--output and --report: expected different files, got s.keras twice",
        ),
        (
            "decompose",
            ["--model={}/text.keras", "--output={}/text.keras"],
            "--output and --model: expected different files",
        ),
        (
            "decompose",
            ["--model={}/text.keras", "--output={}/link.keras"],
            "--output and --model: expected different files",
        ),
        (
            "plan",
            [
                "--model={}/text.keras",
                "--output=p.json",
                "--images={}/images.npy",
                "--cache=p.json",
            ],
            "--output and --cache: expected different files",
        ),
        (
            "micro_models",
            ["--folder=f", "--log={}/none.txt", "--output=t.json"],
            "--log: no such file",
        ),
        (
            "micro_models",
            ["--folder=f", "--log={}/labels.npy", "--log={}/images.npy", "--output={}/images.npy"],
            "--output and --log: expected different files",
        ),
        (
            "benchmark",
            ["--model=a={}/model.keras", "--json={}/model.keras"],
            "--json and --model: expected different files",
        ),
        (
            "evaluate",
            ["--model={}/model.keras", "--images={}/images.npy", L, "--json={}/labels.npy"],
            "--json and --labels: expected different files",
        ),
        ("train", ["--model={}/text.keras", "--output=t.h5", "--epochs=1"], r"ends in \.keras"),
        (
            "train",
            ["--model={}/text.keras", "--output=t.keras", "--epochs=1", "--folder=none"],
            "--folder: expected a folder that exists, got none",
        ),
        (
            "train",
            ["--model={}/text.keras", "--output=t.keras", "--epochs=1", "--teacher={}/no.keras"],
            "--teacher: no such file",
        ),
        (
            "decompose",
            ["--model={}/text.keras", "--output=s.keras", "--plan={}/fine.json", "--rank=2"],
            "expected no --rank beside it",
        ),
        (
            "decompose",
            ["--model={}/text.keras", "--output=s.keras", "--plan={}/plan.json"],
            r"plan\.json: expected the JSON of a Plan: layers\[0\]\.rank: .* int, got str",
        ),
        ("export", ["--model={}/text.h5", "--output=o.tflite"], "text.h5 is no Keras model"),
        ("export", ["--model={}/text.npz", "--output=o.tflite"], "expected a .keras or .h5 file"),
        ("export", ["--model={}/model.keras", "--output=o.lite"], r"ends in \.tflite, got o\.lite"),
        ("export", ["--model={}/model.keras", "--output=n/o.tflite"], "folder does not exist"),
        (
            "export",
            ["--model={}/model.keras", "--output=o.tflite", "--images={}/labels.npy"],
            r"'image': expected shape \(rows, 8, 8, 3\), got \(40,\)",
        ),
        (
            "evaluate",
            ["--model={}/model.keras", "--images={}/data.npz", L],
            "--images, --images_key: .* holds the arrays x, y: .* key of one, got None",
        ),
        (
            "evaluate",
            ["--model={}/model.keras", "--images={}/data.npz", "--images_key=z", L],
            "holds the arrays x, y: expected the key of one, got z",
        ),
        ("evaluate", ["--model={}/model.keras", "--images={}/none.npz", L], "no such file"),
        (
            "evaluate",
            ["--model={}/model.keras", "--images={}/text.npz", L],
            "is no .npy or .npz file, or a damaged one",
        ),
        (
            "evaluate",
            ["--model={}/model.keras", "--images={}/objects.npy", L],
            "expected numbers, got object",
        ),
        (
            "evaluate",
            ["--model={}/model.keras", "--images={}/images.npy", "--images_key=x", L],
            "holds one array without a name: expected no key, got x",
        ),
        ("evaluate", ["--model=m", "--images=i", "--batch_size=0"], "--batch_size=0"),
        ("benchmark", ["--model={}/none.tflite"], "no such file: .*none.tflite"),
        ("benchmark", ["--model={}/text.tflite"], "is no .tflite model"),
        ("benchmark", ["--model=a=x.tflite", "--model=a=y.tflite"], "two models are named 'a'"),
        ("benchmark", ["--model=x.tflite", "--threads=no"], "--threads=no"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    folder, tmp_path, monkeypatch, capsys, name, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert call(name, *(argument.replace("{}", str(folder)) for argument in arguments)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    with pytest.raises(Error, match=message):
        raise Error(line)
    assert line.startswith(f"tfdwd-{name}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_doc_and_every_flag_of_the_script(name, capsys):
    assert call(name, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(SCRIPTS[name].__doc__.strip())
    for flag in SCRIPTS[name].FLAGS:
        assert re.search(rf"^  --{flag}  +\S", text, re.MULTILINE)
    assert "--verbosity" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= (90 if name == "train" else 50)  # a screen; two of training


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_in_the_help_have_flags_that_exist(name):
    commands = re.split("Examples?:", SCRIPTS[name].__doc__)[1].replace("\\\n", " ").splitlines()
    named = [line.partition("tfdwd-")[2].split() for line in commands if "tfdwd-" in line]
    assert name.replace("_", "-") in [words[0] for words in named]
    for script, *words in named:
        known = SCRIPTS[script.replace("-", "_")].FLAGS
        for word in words:
            if word.startswith("--"):
                assert word[2:].partition("=")[0] in known, word


# What a command says otherwise than the function that it calls: by other flags, or not at all.
OTHERWISE = {
    "compress": {"model", "data", "folder", "outputs"},
    "decompose": {
        "model",
        "data",
        "across_layers",
        "recalibrate",
        "on_unsupported",
        "return_report",
    },
    "plan": {"model", "data"},
    "tradeoff": {"model", "data"},
    "export": {"model", "path", "data"},
    "evaluate": {"model", "data", "metric"},
    "benchmark": {"models", "rounds", "warmup", "startup"},
    "train": {
        "model",
        "dataset",
        "loss",
        "outputs",
        "loss_weights",
        "steps_per_epoch",
        "validation",
    },
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_flags_have_the_names_and_defaults_of_the_function(name):
    function = tfdwd.finetune if name == "train" else getattr(tfdwd, name)
    own, flags_ = OTHERWISE[name], SCRIPTS[name].FLAGS
    parameters = inspect.signature(function).parameters
    assert own <= {*parameters}
    for parameter in parameters.values():
        if parameter.name not in own:
            assert parameter.name in flags_, parameter
            default = parameter.default  # flags that take "0.5" or "1.5ms" are text, or lists
            assert flags_[parameter.name].default in (default, str(default), [default]), parameter


def test_helpfull_shows_the_rest(capsys):
    assert call("export", "--helpfull") == 0
    assert "--[no]logtostderr" in capsys.readouterr().out


def test_images_may_come_without_a_key(folder, capsys):
    arguments = [f"--images={folder}/images.npz", f"--labels={folder}/labels.npy"]
    assert call("evaluate", f"--model={folder}/model.keras", *arguments) == 0
    assert capsys.readouterr().out.startswith("top-1 0.7500")


def test_models_are_named_by_their_files_unless_told(folder, tmp_path, capsys):
    assert call("export", f"--model={folder}/model.keras", f"--output={tmp_path}/small.tflite") == 0
    capsys.readouterr()
    models = [f"--model=first={folder}/model.keras", f"--model={tmp_path}/small.tflite"]
    assert call("benchmark", *models, "--rounds=2", f"--json={tmp_path}/times.json") == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["first", "small"]
    timings = json.loads((tmp_path / "times.json").read_text())["timings"]
    assert [timing["name"] for timing in timings] == ["first", "small"]


def test_times_of_operators_beside_a_plan(folder, tmp_path, capsys):
    (tmp_path / "log.txt").write_text(
        "Graph: [x.tflite]\n= Run Order =\n[node type] [first] [avg ms] [times called] [Name]\n"
        "CONV_2D 0.3 0.2 1 [x_1/convolution]:0\nNumber of nodes executed: 1\n"
        "Timings (microseconds): count=50 curr=200 avg=205\n"
    )
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="x")]).save(
        tmp_path / "x.keras"
    )
    outputs = [f"--json={tmp_path}/profile.json", f"--model_explorer={tmp_path}/nodes.json"]
    given = [f"--profile={tmp_path}/log.txt", f"--model={tmp_path}/x.keras", *outputs]
    assert call("benchmark", *given, f"--plan={folder}/fine.json") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["CONV_2D", "x", "1", "0.2000", "100.0"]
    assert lines[3] == ["x.tflite:", "0.2050", "ms"]
    assert lines[7] == ["x", "kept", "0.2000"]
    profile = tfdwd.Profile.from_json((tmp_path / "profile.json").read_text())
    assert profile.layers == {"x": 0.2}
    nodes = json.loads((tmp_path / "nodes.json").read_text())
    assert nodes == {"results": {"x_1/convolution": {"value": 0.2}}}
    assert call("benchmark", given[0], given[1], f"--model=y={tmp_path}/x.keras") == 1
    assert "expected at most one .tflite file and one Keras model" in capsys.readouterr().err


def status_of(main):
    """The exit status of a command without flags."""
    return common.status(main, flags.FlagValues(), "", ["tfdwd-x"])


def test_a_mistake_in_the_program_is_one_line_and_a_traceback_in_a_file(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken():
        reporting.as_text([3])

    assert status_of(broken) == 1
    [line] = capsys.readouterr().err.splitlines()
    [saved] = tmp_path.iterdir()
    assert line.startswith("tfdwd-x: unexpected TypeError: ")
    assert line.endswith(f"; its traceback is in {saved}") and "(in reporting.as_text" in line
    assert "in broken" in saved.read_text() and "TypeError" in saved.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert status_of(broken) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("its traceback could not be saved: No such file or directory")


def test_a_command_that_is_terminated_leaves_nothing(tmp_path, monkeypatch, pytestconfig):
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    output = tmp_path / "student.keras"
    half = f"""import os, signal
    from tfdwd import files
    with files._put_in_place({str(output)!r}) as half:
        half.touch()
        os.kill(os.getpid(), signal.SIGTERM)"""
    killed = chatty(more=half)
    assert killed.returncode == 143
    assert killed.stderr.splitlines()[-1] == "-c: terminated"
    assert not list(tmp_path.iterdir())


def test_a_backend_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "model.keras").touch()
    paths = [f"--model={tmp_path}/model.keras", f"--output={tmp_path}/student.keras"]
    command = commands.start("decompose", *paths, cwd=tmp_path, KERAS_BACKEND="nonsense")
    _, err = command.communicate(timeout=300)
    assert err.splitlines()[-1].startswith("decompose: cannot import Keras: Unable to import")
    assert err.splitlines()[-1].endswith("set KERAS_BACKEND=tensorflow")


def test_ctrl_c_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert status_of(interrupted) == 130
    assert capsys.readouterr().err == "tfdwd-x: interrupted\n"


CHATTY = """
import sys
from absl import flags, logging
from tfdwd.scripts import common

def main():
    print("conv \\xe9 " * 50000)  # more than a pipe holds
    logging.warning("layer %s", "\\x1b[2J\\xe9")
    {}

common.run(main, flags.FlagValues(), "")
"""


def chatty(shell="{}", more="", **environment):
    """Runs a command that says much, by a shell command around it."""
    code = shlex.quote(CHATTY.format(more))
    command = shell.format(f"{shlex.quote(sys.executable)} -c {code}")
    # A shell's status of a pipe is that of its first part here.
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        check=False,
    )


def test_terminals_and_pipes_of_every_kind(monkeypatch, pytestconfig):
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    plain = chatty()
    assert plain.returncode == 0 and plain.stdout.startswith("conv é conv é")
    [log] = plain.stderr.splitlines()
    assert log.endswith(r"layer \x1b[2Jé")
    ascii_only = chatty(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ascii_only.returncode == 0 and r"conv \xe9 conv" in ascii_only.stdout
    head = chatty("{} | head -c 5")
    assert (head.returncode, head.stdout, head.stderr) == (141, "conv ", "")
    full = chatty("{} > /dev/full")
    [line] = full.stderr.splitlines()
    assert full.returncode == 1 and "No space left on device" in line
    closed = chatty("{} >&- 2>&-")
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")
    # Of a job in the background the shell has the signal ignored.
    heard = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    killed = chatty(more=f"{heard}; os.kill(os.getpid(), signal.SIGINT)")
    assert killed.returncode == 130
    assert killed.stderr.splitlines()[-1] == "-c: interrupted"
    assert len(killed.stderr.splitlines()) == 2


def test_a_file_that_crashes_litert_is_one_line(folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "model.tflite"
    assert call("export", f"--model={folder}/model.keras", f"--output={path}") == 0
    capsys.readouterr()
    common.check_tflite([str(path)])
    # A real one is rare: the child ends as it would.
    dies = "import os; os.kill(os.getpid(), 11)"
    monkeypatch.setattr(children, "_CODE", f"print({str(path)!r}, flush=True); {dies}")
    data = [f"--images={folder}/images.npz", f"--labels={folder}/labels.npy"]
    for command in (["benchmark"], ["evaluate", *data]):
        assert call(*command, f"--model={path}") == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "model.tflite crashes LiteRT (signal 11): it is damaged" in line


def test_a_device_takes_what_is_written(folder, capsys):
    data = [f"--images={folder}/images.npz", f"--labels={folder}/labels.npy"]
    assert call("evaluate", f"--model={folder}/model.keras", *data, "--json=/dev/null") == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    timed = [f"--model={folder}/model.keras", "--rounds=1", "--json=/dev/null", "--csv=/dev/null"]
    assert call("benchmark", *timed) == 0


def test_h5_models_load(folder, tmp_path, classifier):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *_: None)  # Keras advises against .h5.
        classifier.save(tmp_path / "model.h5")
    loaded = common.load_model(str(tmp_path / "model.h5"))
    assert isinstance(loaded, keras.Model)
    for found, expected in zip(loaded.get_weights(), classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_decompose_writes_the_student_and_its_report(folder, tmp_path, capsys):
    status = call(
        "decompose",
        f"--model={folder}/model.keras",
        f"--images={folder}/images.npz",
        f"--output={tmp_path}/student.keras",
        f"--report={tmp_path}/report.json",
        "--include=*",
    )
    assert status == 0
    kinds = [
        type(layer).__name__ for layer in keras.models.load_model(tmp_path / "student.keras").layers
    ]
    # The 3x3 convolution became two layers; the network has a depthwise one of its own.
    assert kinds.count("DepthwiseConv2D") == 2
    report = json.loads((tmp_path / "report.json").read_text())
    # 6 * 6 positions, 3 channels of 9 taps to 6 outputs.
    assert report["layers"][0]["macs_before"] == 36 * 3 * 9 * 6
    assert report["layers"][0]["macs_after"] == 36 * 3 * (9 + 6)
    assert "method joint" in capsys.readouterr().out


def test_decompose_leaves_nothing_behind_when_a_pattern_matches_nothing(folder, tmp_path, capsys):
    output = tmp_path / "student.keras"
    status = call(
        "decompose", f"--model={folder}/model.keras", f"--output={output}", "--exclude=nothing"
    )
    assert status == 1
    assert "matches none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_written_and_carried_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layers = keras.layers
    network = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(6, 3), layers.DepthwiseConv2D(3), layers.Flatten()]
    )
    network.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(40, 8, 8, 4)))
    model, images = f"--model={tmp_path}/model.keras", f"--images={tmp_path}/images.npy"
    # Nothing has to become faster for this budget: how fast the machine is does not matter.
    wide = ["--max_error=1e9", "--threads=1", f"--output={tmp_path}/plan.json"]
    assert call("plan", model, images, *wide) == 0
    written = tfdwd.Plan.from_json((tmp_path / "plan.json").read_text())
    assert len(written.layers) == 2 and written.layers[1].reason == "already depthwise"
    assert (tmp_path / "cache" / "tfdwd" / "latency.json").is_file()
    output = f"--output={tmp_path}/student.keras"
    assert call("decompose", model, images, output, f"--plan={tmp_path}/plan.json") == 0
    student = keras.models.load_model(tmp_path / "student.keras")
    kinds = [type(layer).__name__ for layer in student.layers].count("DepthwiseConv2D")
    assert kinds == 1 + written.layers[0].rank + (written.layers[0].width > 0)
    # A tradeoff of which this is the one plan; the script that makes them is tried by planning.
    both = tfdwd.Tradeoff((written,))
    (tmp_path / "tradeoff.json").write_text(both.to_json())
    several = [output, f"--plan={tmp_path}/tradeoff.json"]
    assert call("decompose", model, images, *several, "--latency=9") == 0
    again = keras.models.load_model(tmp_path / "student.keras")
    for a, b in zip(student.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    capsys.readouterr()
    assert call("decompose", model, images, *several, "--latency=0.001") == 1
    assert "latency=0.001: expected at least" in capsys.readouterr().err
    assert call("decompose", model, images, output, "--latency=0.5") == 1
    assert "expected --plan beside it" in capsys.readouterr().err
    (tmp_path / "plan.json").write_bytes(b"\xff")
    assert call("decompose", model, images, output, f"--plan={tmp_path}/plan.json") == 1
    assert "plan.json holds no text" in capsys.readouterr().err
    assert call("plan", model, images, "--latency=soon", f"--output={tmp_path}/p.json") == 1
    assert "latency: expected a positive number" in capsys.readouterr().err


@pytest.fixture(scope="module")
def softmax_model(tmp_path_factory):
    """A classifier that gives probabilities, and images and labels of 8 x 8 px, as shards too."""
    folder = tmp_path_factory.mktemp("train")
    keras.utils.set_random_seed(5)
    x = image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 3, name="conv")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(x))
    model.save(folder / "model.keras")
    tfdwd.decompose(model, rank=1, method="svd", include="conv").save(folder / "student.keras")
    images = np.random.default_rng(0).integers(0, 255, (48, 8, 8, 3)).astype(np.uint8)
    np.savez(folder / "data.npz", x=images, y=images.mean((1, 2)).argmax(1))
    with tf.io.TFRecordWriter(str(folder / "train-00000-of-00001")) as writer:
        for number, array in enumerate(images):
            jpeg = tf.io.encode_jpeg(array).numpy()
            (folder / f"images/train/{number % 3}").mkdir(parents=True, exist_ok=True)
            (folder / f"images/train/{number % 3}/{number}.jpg").write_bytes(jpeg)
            encoded = tf.train.BytesList(value=[jpeg])
            label = tf.train.Int64List(value=[number % 3])
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=encoded),
                "image/class/label": tf.train.Feature(int64_list=label),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    return folder


@pytest.mark.parametrize(
    "data",
    [
        ["--images={}/data.npz", "--images_key=x", "--teacher={}/model.keras", "--features=1"],
        [
            "--images={}/data.npz",
            "--images_key=x",
            "--labels={}/data.npz",
            "--labels_key=y",
            "--validation={}/data.npz",
            "--validation_key=x",
            "--validation_labels={}/data.npz",
            "--validation_labels_key=y",
            "--ema=0.9",
            "--label_smoothing=0.1",
        ],
        ["--records={}", "--teacher={}/model.keras", "--validation_split=train"],
        ["--image_folder={}/images", "--freeze_batch_norm", "--warmup=0", "--weight_decay=0"],
    ],
    ids=["teacher", "labels", "records", "folder"],
)
def test_train_goes_on_where_it_stopped(softmax_model, tmp_path, capsys, data):
    own = [argument.format(softmax_model) for argument in data]
    student = f"--model={softmax_model}/student.keras"
    output, folder = f"--output={tmp_path}/tuned.keras", f"--folder={tmp_path}"
    common_flags = [student, output, "--batch_size=16", "--learning_rate=0.01", *own]
    assert call("train", "--epochs=3", folder, *common_flags) == 0
    whole = capsys.readouterr().out
    assert len(whole.splitlines()) == 5
    assert keras.models.load_model(tmp_path / "tuned.keras").count_params() > 0
    validated = any("validation" in flag for flag in data)
    assert ("val_top1" in whole) == validated and ("val_loss" in whole) != validated
    assert (tmp_path / "best.keras").exists()
    # Nothing is left to do: the losses are those of the checkpoint.
    assert call("train", "--epochs=3", folder, "--resume", *common_flags) == 0
    assert capsys.readouterr().out == whole


def test_train_needs_one_kind_of_data(softmax_model, tmp_path, capsys):
    model = f"--model={softmax_model}/student.keras"
    output = f"--output={tmp_path}/tuned.keras"
    two = [f"--images={softmax_model}/data.npz", "--images_key=x", f"--records={softmax_model}"]
    for data in ([], two):
        assert call("train", model, output, "--epochs=1", *data) == 1
        assert (
            "expected --images, --records, --tfds or --image_folder, one of them"
            in capsys.readouterr().err
        )
    assert list(tmp_path.iterdir()) == []


def test_open_sizes_are_given_as_flags(tmp_path, capsys):
    keras.Sequential([keras.Input((None, None, 3), name="x"), keras.layers.Conv2D(4, (1, 3))]).save(
        tmp_path / "open.keras"
    )
    model, shape = f"--model={tmp_path}/open.keras", "--input_shape=9x7x3"
    assert call("export", model, f"--output={tmp_path}/m.tflite", shape) == 0
    assert lite.Model(tmp_path / "m.tflite").inputs[0].shape == (1, 9, 7, 3)
    assert call("benchmark", model, "--rounds=1", "--input_shape=x=9x7x3") == 0
    assert call("micro_models", model, f"--folder={tmp_path}/micro", shape) == 0
    assert lite.Model(tmp_path / "micro" / "network.tflite").inputs[0].shape == (1, 9, 7, 3)
    capsys.readouterr()
    assert call("export", model, f"--output={tmp_path}/n.tflite") == 1
    assert "leaves sizes open, (any, any, 3): pass data, or" in capsys.readouterr().err
    assert not (tmp_path / "n.tflite").exists()


def test_shapes_on_the_command_line():
    assert common.input_shape(["128x96x3"]) == (128, 96, 3)
    assert common.input_shape(["8x8x3", "5"]) == [(8, 8, 3), (5,)]
    assert common.input_shape(["a=8x8x3", "b=c=5"]) == {"a": (8, 8, 3), "b=c": (5,)}
    for wrong in (["8x"], ["8,8"], ["0x3"], ["a=8", "5"], ["a=8", "a=5"], ["-1x3"], [""]):
        with pytest.raises(Error, match="--input_shape: expected "):
            common.input_shape(wrong)


def test_printing_to_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def prints() -> None:
        raise OSError(28, "No space left on device")

    assert common.status(prints, flags.FlagValues(), "", ["tfdwd-export"]) == 1
    assert capsys.readouterr().err == (
        "tfdwd-export: cannot write: No space left on device; free some space\n"
    )
