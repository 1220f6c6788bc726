import dataclasses
import json
import os
import stat

import keras
import numpy as np
import pytest

from tfdwd import benchmarking, planning, reporting
from tfdwd.errors import Error


def test_table_aligns_the_first_column_left_and_the_others_right():
    rows = [["conv_1", 12345, "0.5"], ["d", 7, None]]
    assert reporting.table(["layer", "MACs", "error"], rows) == (
        "layer    MACs  error\n"
        "------  -----  -----\n"
        "conv_1  12345    0.5\n"
        "d           7   None"
    )  # fmt: skip


def test_table_refuses_a_row_of_another_width():
    with pytest.raises(Error, match="2 columns got a row of 1 cells"):
        reporting.table(["a", "b"], [["only"]])


@dataclasses.dataclass(frozen=True)
class Layer:
    name: str
    rank: int | None
    shape: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Report:
    layers: tuple[Layer, ...]
    counts: dict[str, int]
    best: Layer | None
    error: float


def test_dataclasses_survive_json():
    layer = Layer("conv", None, (3, 5))
    for best in (None, layer):
        report = Report((layer, Layer("other", 2, (1, 1))), {"CONV_2D": 3}, best, 0.25)
        text = reporting.to_json(report)
        assert json.loads(text)["layers"][1]["rank"] == 2
        assert reporting.from_json(Report, text) == report


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"layers": 3}', '{"unknown": 1}'])
def test_json_of_something_else_is_a_clear_error(text):
    with pytest.raises(Error, match="expected the JSON of a Report"):
        reporting.from_json(Report, text)


@pytest.mark.parametrize(("content", "expected"), [("é\n", "é\n".encode()), (b"\0\1", b"\0\1")])
def test_write_whole_writes_and_replaces(tmp_path, content, expected):
    path = tmp_path / "file.bin"
    path.write_text("what was there before, and longer")
    reporting.write_whole(path, content)
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_leaves_the_usual_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        reporting.write_whole(tmp_path / "file", "")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_write_whole_leaves_the_old_file_and_nothing_else_where_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Error, match=r"cannot write .*file: No space left on device"):
        reporting.write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_names_what_is_wrong_with_the_path(tmp_path):
    with pytest.raises(Error, match="its folder does not exist"):
        reporting.write_whole(tmp_path / "none" / "file", "")
    with pytest.raises(Error, match="it is a folder"):
        reporting.write_whole(tmp_path, "")


def test_save_model_writes_what_keras_loads(tmp_path, classifier):
    path = tmp_path / "model.keras"
    reporting.save_model(classifier, path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = keras.models.load_model(path)
    for found, expected in zip(loaded.get_weights(), classifier.get_weights(), strict=True):
        assert (found == expected).all()


def test_save_model_leaves_nothing_where_keras_fails(tmp_path, classifier, monkeypatch):
    def fails_half_way(path, *_, **__):
        path.write_text("half a model")
        raise RuntimeError("cannot go on")

    monkeypatch.setattr(classifier, "save", fails_half_way)
    with pytest.raises(RuntimeError, match="cannot go on"):
        reporting.save_model(classifier, tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


def test_save_model_refuses_another_ending(tmp_path, classifier):
    with pytest.raises(Error, match=r"ends in \.keras, got .*model\.h5"):
        reporting.save_model(classifier, tmp_path / "model.h5")


def test_progress_goes_through_and_is_silent_where_there_is_no_terminal(capfd):
    assert list(reporting.progress([3, 1, 2], "counting")) == [3, 1, 2]
    with reporting.progress(2, "counting") as bar:
        assert bar.total == 2
        bar.update()
    assert capfd.readouterr() == ("", "")


def test_html_has_the_same_cells():
    parts = [(["layer", "MACs"], [["a < b", 12]]), "1 & 2"]
    assert reporting.as_html(parts) == (
        "<table><tr><th>layer</th><th>MACs</th></tr><tr><td>a &lt; b</td><td>12</td></tr></table>"
        "<p>1 &amp; 2</p>"
    )
    assert reporting.as_text(parts).splitlines()[2:] == ["a < b    12", "1 & 2"]


def test_plots_have_a_bar_for_each_model_or_layer():
    timing = benchmarking.timing_of("a", 1, np.array([0.001, 0.002, 0.004]), np.ones(3))
    report = benchmarking.BenchmarkReport((timing, timing), "CPU", 1, 3, "LiteRT", "today")
    [axes] = reporting.plot(report).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 2.0]
    layer = planning.LayerPlan("x", False, "why", "", 0, 0, 9, 9, 9, 9, 0.0, 2.0, 1.0)
    untimed = dataclasses.replace(layer, ms_before=None, ms_after=None)
    plan = planning.Plan((layer, untimed), "", 2.0, 1.0, 0.0, "none", 1, "CPU", "LiteRT")
    [axes] = reporting.plot(plan).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 1.0]
