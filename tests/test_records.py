"""Records: types and ranges by hand and from JSON, with the path of what is wrong."""

import dataclasses
import json

import numpy as np
import pytest

from tfdwd.adb import BenchmarkReport
from tfdwd.benchmarking import Timing
from tfdwd.conditions import Conditions
from tfdwd.errors import Error
from tfdwd.latency import LatencyTable, _Manifest
from tfdwd.logs import Run
from tfdwd.plans import LayerPlan, Plan
from tfdwd.records import Amount, Count, Positive, PositiveAmount, Record, Share, dumps, loads


@dataclasses.dataclass(frozen=True)
class Layer(Record):
    name: str
    rank: Count | None
    shape: tuple[int, int] = (1, 1)
    kept: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept and self.rank:
            raise Error("a kept layer has no rank")


@dataclasses.dataclass(frozen=True)
class Report(Record):
    layers: tuple[Layer, ...]
    counts: dict[str, Positive]
    best: Layer | None
    error: float
    ms: Amount = 0.0
    share: Share = 0.0


WHOLE = Report((Layer("conv", None, (3, 5)), Layer("x", 2)), {"CONV_2D": 3}, Layer("y", 1), 0.25)


def test_records_survive_json() -> None:
    text = WHOLE.to_json()
    assert json.loads(text)["layers"][1]["rank"] == 2
    assert Report.from_json(text) == WHOLE
    without = dataclasses.replace(WHOLE, best=None)
    assert Report.from_json(without.to_json()) == without


def test_json_of_an_earlier_version_gets_defaults() -> None:
    old = json.loads(WHOLE.to_json())
    del old["ms"], old["share"], old["layers"][0]["kept"]
    assert Report.from_json(json.dumps(old)) == WHOLE


def _edited(path: str, value: object) -> str:
    """The JSON of `WHOLE` with one value changed."""
    whole = json.loads(WHOLE.to_json())
    *steps, last = path.split(".")
    part = whole
    for step in steps:
        part = part[int(step) if step.isdigit() else step]
    part[last] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "it is no JSON: Expecting value"),
        ("", "it is no JSON: Expecting value"),
        ("[]", "expected object, got array"),
        ('{"layers": 3}', "counts: this field is missing"),
        ("[" * 100_000, "nested too deeply"),
        ('{"error": NaN}', "expected finite numbers, got NaN"),
        ('{"error": -Infinity}', "expected finite numbers, got -Infinity"),
        ('{"ms": 1e999}', "expected finite numbers, got 1e999"),
        ('{"ms": 1, "ms": 2}', "each key once, got 'ms' twice"),
        ('{"ms": ' + "1" * 5000 + "}", "Exceeds the limit"),
        (_edited("layers", 3), r"layers: expected array, got int"),
        (_edited("layers.0.kept", "false"), r"layers\[0\]\.kept: expected bool, got str"),
        (_edited("layers.1.rank", 2.0), r"layers\[1\]\.rank: expected int, got float"),
        (_edited("layers.1.rank", True), r"layers\[1\]\.rank: expected int, got bool"),
        (_edited("layers.1.rank", -1), r"layers\[1\]\.rank: expected int >= 0, got -1"),
        (_edited("layers.1.kept", True), r"layers\[1\]: a kept layer has no rank"),
        (_edited("layers.0.shape", [1, 2, 3]), r"layers\[0\]\.shape: expected 2 values, got 3"),
        (_edited("layers.0.nmae", "x"), r"layers\[0\]\.nmae: no such field; .* mean 'name'\?"),
        (_edited("zzz", 1), "zzz: no such field; there are layers, counts, best, error, ms, share"),
        (_edited("best.shape", "ab"), r"best\.shape: expected array, got str"),
        (_edited("counts.CONV_2D", 0), r"counts\['CONV_2D'\]: expected int >= 1, got 0"),
        (_edited("ms", "\ud800"), r"ms: expected text that UTF-8 can hold, got '"),
        (_edited("layers.0.rank", "\ud800"), r"layers\[0\]\.rank: expected text that UTF-8 "),
        (_edited("counts", [3]), "counts: expected object, got array"),
        (_edited("ms", -0.1), "ms: expected float >= 0.0, got -0.1"),
        (_edited("ms", None), "ms: expected float, got null"),
        (_edited("ms", 10**400), "ms: Number out of range"),
        (_edited("share", 1.1), "share: expected float <= 1.0, got 1.1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_of_something_else_names_the_field(text: str, message: str) -> None:
    with pytest.raises(Error, match=f"^expected the JSON of a Report: .*{message}"):
        Report.from_json(text)


def test_records_check_themselves_when_they_are_made_by_hand() -> None:
    with pytest.raises(Error, match=r"Layer\.rank: expected int >= 0, got -1"):
        Layer("x", -1)
    with pytest.raises(Error, match=r"Layer\.name: expected str, got int"):
        Layer(3, 1)  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"Report\.ms: expected float <= 1\.79.*, got inf"):
        dataclasses.replace(WHOLE, ms=float("inf"))
    with pytest.raises(Error, match=r"Report\.ms: expected float >= 0.*, got nan"):
        dataclasses.replace(WHOLE, ms=float("nan"))
    # Lists become tuples, NumPy's numbers Python's: what is equal stays equal through JSON.
    made = Report([Layer("x", np.int64(2))], {}, None, np.float32(0.5), 3)  # type: ignore[arg-type]
    assert made == Report((Layer("x", 2),), {}, None, 0.5, 3.0)
    assert [type(v) for v in (made.layers[0].rank, made.error, made.ms)] == [int, float, float]


def test_what_json_cannot_say_is_an_error() -> None:
    with pytest.raises(Error, match="cannot be written as JSON"):
        dumps({"psnr": float("inf")})
    assert loads(dumps({"psnr": 1e308})) == {"psnr": 1e308}


TIMING = Timing("a", 10, 2.0, 1.0, 3.0, 1.0, 0.9, 1.1, 5.0, None, 100.0)
PLANNED = LayerPlan("x", True, "", "bottleneck", 0, 7, 9, 8, 9, 8, 0.1, 2.0, 1.0)
REAL = [
    TIMING,
    BenchmarkReport((TIMING,), "CPU", 1, 3, "LiteRT", "today", True, Conditions(3, ("a",))),
    PLANNED,
    Plan((PLANNED,), "latency=0.5", 2.0, 1.0, 0.1, "none", 1, "CPU", "LiteRT"),
    LatencyTable("d", "r", "none", 1, 3.0, {"g": {"kept": 1.0, "b 1": 1.0, "b 1 surely": 1.0}}),
    _Manifest("none", {"0.tflite": ("g", "kept"), "1.tflite": ("g", "b 1")}),
    Run("tfdwd", "x", 1.0, 0.0, 1, None, 2.0),
]


@pytest.mark.parametrize("record", REAL, ids=lambda record: type(record).__name__)
def test_the_records_of_tfdwd_survive_json(record: Record) -> None:
    assert type(record).from_json(record.to_json()) == record


def _mutations(value: object, path: str = "") -> list[tuple[str, object]]:
    """Each number, flag and text of a JSON value replaced by what it may not be."""
    if isinstance(value, dict):
        return [
            (f"{path}.{key}", {**value, key: changed})
            for key, item in value.items()
            for _, changed in _mutations(item, f"{path}.{key}")
        ]
    if isinstance(value, list):
        return [
            (f"{path}.{index}", [*value[:index], changed, *value[index + 1 :]])
            for index, item in enumerate(value)
            for _, changed in _mutations(item, f"{path}.{index}")
        ]
    wrong: list[object] = [[[]], {"a": {}}]
    if isinstance(value, bool):
        wrong += ["false", 1, None]
    elif isinstance(value, int):
        wrong += [-1, 1.5, 2.0, "1", True]
    elif isinstance(value, float):
        wrong += ["1", True]
    elif isinstance(value, str):
        wrong += [3, True, None]
    return [(path, each) for each in wrong]


@pytest.mark.parametrize("record", REAL, ids=lambda record: type(record).__name__)
def test_whatever_is_edited_wrongly_is_refused(record: Record) -> None:
    found = _mutations(json.loads(record.to_json()))
    assert len(found) > 10
    for path, changed in found:
        with pytest.raises(Error, match="expected the JSON of a"):
            type(record).from_json(json.dumps(changed))
            pytest.fail(f"{path} was taken: {changed}")


def test_times_are_positive_and_whole() -> None:
    with pytest.raises(Error, match=r"layers\['g'\]\['b 1 surely'\]: this number is missing"):
        LatencyTable("d", "r", "none", 1, 3.0, {"g": {"kept": 1.0, "b 1": 1.0}})
    with pytest.raises(Error, match=r"LatencyTable\.layers\['g'\]\['kept'\]: expected float > 0"):
        LatencyTable("d", "r", "none", 1, 3.0, {"g": {"kept": 0.0}})
    with pytest.raises(Error, match=r"layers\[1\]\.name: expected each layer once, got 'x' twice"):
        Plan((PLANNED, PLANNED), "", 1.0, 1.0, 0.0, "none", 1, "", "")
    with pytest.raises(Error, match='no model of the same layer is "kept"'):
        _Manifest("none", {"0.tflite": ("g", "separable 1")})
    assert PositiveAmount is not Amount
