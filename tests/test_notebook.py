"""The notebooks of colab/, run from top to bottom."""

import html
import re
from pathlib import Path

import keras
import matplotlib
import nbclient
import nbformat
import numpy as np
import pytest
from keras import layers

import tfdwd

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "benchmarks/demo/fashion_mnist.npz"
NAMES = ["tfdwd.ipynb", "your_network.ipynb"]


def _read(name):
    return nbformat.read(ROOT / "colab" / name, 4)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _set(notebook, **values):
    """Gives names that a notebook sets at the start of a line other values."""
    for name, value in values.items():
        line = re.compile(rf"^{name} = .*$", re.MULTILINE)
        [cell] = [cell for cell in _code(notebook) if line.search(cell.source)]
        cell.source = line.sub(lambda _, text=f"{name} = {value!r}": text, cell.source)


def _executed(name, folder, **values):
    notebook = _read(name)
    _set(notebook, **values)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # times are measured anew
        patch.setenv("PYTHONPATH", str(ROOT))
        nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
        ).execute()
    return notebook


def _outputs(notebook, start):
    """(text, HTML, number of pictures) of the code cell whose source has these words."""
    [cell] = [cell for cell in _code(notebook) if start in cell.source]
    data = [output.get("data", {}) for output in cell.outputs]
    text = "".join(output.get("text", "") for output in cell.outputs)
    return text, "".join(d.get("text/html", "") for d in data), sum("image/png" in d for d in data)


def _scores(text):
    return [float(value) for value in re.findall(r"(?:top-1|PSNR) ([0-9.]+)", text)]


def _record(folder):
    return tfdwd.Compression.from_json((folder / "compressed/result.json").read_text())


def _check_shown(notebook, folder):
    """What compress made shows itself in the cells after it."""
    result = _record(folder)
    assert result.speed_up > 1  # or compress would have refused it
    assert _outputs(notebook, "tfdwd.compress(")[1] == result._repr_html_()
    page = _outputs(notebook, "srcdoc")[1].partition('srcdoc="')[2].partition('"')[0]
    assert html.unescape(page) == (folder / "compressed/report.html").read_text()
    made = _outputs(notebook, "colab.download")[0].removeprefix("files: ").split()
    assert all((folder / name).stat().st_size for name in made)
    return result, [Path(name).name for name in made]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_clean(name):
    notebook = _read(name)
    nbformat.validate(notebook)
    assert _code(notebook)[0].metadata.tags == ["parameters"]
    assert not any(cell.outputs or cell.execution_count for cell in _code(notebook))
    badge = f"github/tfdwd/tfdwd/blob/main/colab/{name}"
    assert badge in notebook.cells[0].source
    assert badge in (ROOT / "colab/README.md").read_text()


def _classifier(folder):
    """A network of three convolutions that can be replaced, and 1,000 images: the demo's has 13."""
    with np.load(DEMO) as content:
        few = {name: content[name][:1000] for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "few.npz", **few)
    x = image = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(x)
    for filters, strides in (16, 2), (48, 1), (48, 1), (48, 2):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.Dense(10, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
    keras.utils.set_random_seed(0)
    model = keras.Model(image, x, name="small")
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(few["x_train"], few["y_train"], batch_size=50, epochs=8, verbose=0)
    model.save(folder / "small.keras")
    return {"MODEL": "small.keras", "IMAGES": "few.npz", "COUNT": 400, "MINUTES": 0.05}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(_classifier, id="small"),
        pytest.param(lambda folder: {}, id="as_it_stands", marks=pytest.mark.slow),
    ],
)
def classified(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classified")
    return _executed("tfdwd.ipynb", folder, **request.param(folder)), folder


def test_one_call_makes_a_classifier_faster(classified):
    notebook, folder = classified
    result, made = _check_shown(notebook, folder)
    [original] = _scores(_outputs(notebook, "original:")[0])
    assert result.original_score.top1 == pytest.approx(original, abs=0.001)
    assert original > 0.65 and result.lost < 0.1
    listed = _outputs(notebook, "iterdir")[0].split("\n")
    assert any(re.fullmatch(r" *[0-9.]+ KiB  student\.keras", line) for line in listed)
    text, timed, _ = _outputs(notebook, 'quantize="int8"')
    scores = _scores(text)
    assert scores[:2] == pytest.approx(
        [result.original_score.top1, result.student_score.top1], abs=1e-4
    )
    assert scores[2:] == pytest.approx(scores[:2], abs=0.02)
    assert timed.count("<td>student") == 2 and "<th>speed-up</th>" in timed
    assert made == [
        "original.tflite", "student.tflite", "original_int8.tflite", "student_int8.tflite",
        "student.keras", "report.html",
    ]  # fmt: skip


def test_the_steps_are_shown_one_by_one(classified):
    notebook, _ = classified
    _, shown, plots = _outputs(notebook, "display(result.plan)")
    assert "<th>why kept</th>" in shown and "latency=0.5: " in shown and plots == 1
    _, shown, plots = _outputs(notebook, "display(result.benchmark)")
    assert "<td>student</td>" in shown and plots == 1
    text, shown, _ = _outputs(notebook, "rank=1")
    assert "<th>layer</th>" in shown and "method joint; MACs" in shown
    [original] = _scores(_outputs(notebook, "original:")[0])
    [rank1] = _scores(text)
    [planned] = _scores(_outputs(notebook, "rank=result.plan")[0])
    text, _, _ = _outputs(notebook, "tfdwd.finetune(")
    [tuned] = _scores(text)
    assert 0.5 < rank1 and original - 0.1 < planned and original - 0.1 < tuned
    before, after = map(float, re.findall(r"'val_loss': ([0-9.e-]+)", text))
    assert after <= before


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"EPOCHS": 2, "MOST": 400, "MINUTES": 0.05}, id="short"),
        pytest.param({}, id="as_it_stands", marks=pytest.mark.slow),
    ],
)
def enlarged(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("enlarged")
    return _executed("your_network.ipynb", folder, **request.param), folder


def test_a_network_that_is_no_classifier_gets_faster(enlarged):
    notebook, folder = enlarged
    result, made = _check_shown(notebook, folder)
    [plain] = _scores(_outputs(notebook, "EPOCHS")[0])
    [original] = _scores(_outputs(notebook, "original:")[0])
    score = result.student_score["psnr"]
    assert result.original_score["psnr"] == pytest.approx(original, abs=0.01)
    assert plain + 1 < score < original + 0.5  # dB
    _, shown, plots = _outputs(notebook, "display(result.plan")
    assert "<th>why kept</th>" in shown and "<th>speed-up</th>" in shown and plots == 2
    _, _, plots = _outputs(notebook, "def as_picture")
    assert plots == 1
    text, shown, _ = _outputs(notebook, 'quantize="int8"')
    assert _scores(text) == [pytest.approx(score, abs=0.5)]
    assert "student_int8.tflite" in shown
    assert made == [
        "original.tflite", "student.tflite", "student_int8.tflite", "student.keras", "report.html"
    ]  # fmt: skip


def _run(notebook, start, names):
    [cell] = [cell for cell in _code(notebook) if start in cell.source]
    exec(cell.source, names)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_files_of_ones_own_are_read(task, tmp_path, monkeypatch, capsys):
    """An .h5 file, a folder of images of several sizes, and no labels."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    x = image = keras.Input((10, 12, 3))
    if task == "segmentation":
        x = layers.Conv2D(5, 3, padding="same", activation="softmax")(x)
    else:
        x = [layers.Conv2D(4, 3, name=name)(x) for name in ("classes", "boxes")]
    model = keras.Model(image, x)
    model.save("own.h5")
    Path("compressed").mkdir()
    model.save("compressed/student.keras")
    Path("images").mkdir()
    for number in range(7):
        picture = np.full((20 + number, 24, 3), 10 * number, np.uint8)
        keras.utils.save_img(f"images/{number}.png", picture, scale=False)
    notebook = _read("your_network.ipynb")
    _set(notebook, MODEL="own.h5", IMAGES="images", TEST="", MOST=6)
    names = {"Path": Path}
    for start in ("# Parameters", "from tfdwd import bridge", "EPOCHS", "bridge.load"):
        _run(notebook, start, names)
    assert names["images"].shape == (6, 10, 12, 3) and names["images"].dtype == np.uint8
    assert set(names["images"].ravel()) < set(range(0, 70, 10))
    assert names["test"] is None and not Path("example").exists()
    _run(notebook, "def as_picture", names)
    printed = capsys.readouterr().out
    if task == "segmentation":
        assert "Figure" in printed
        shown = names["as_picture"](names["answers"]["student"][0])
        assert shown.shape == (10, 12) and 0 <= shown.min() and shown.max() <= 1
    else:
        assert "original" in printed and "student" in printed and "Figure" not in printed


def test_the_errors_that_it_explains_are_those_of_tfdwd(said):
    [cell] = [
        cell for cell in _read("your_network.ipynb").cells if "| the error says" in cell.source
    ]
    told = re.findall(r"^\| `(.*?)` \|", cell.source, re.MULTILINE)
    assert len(told) == 8
    assert [one for one in told if not any(one in text for text in said)] == []
