"""The pages, as text and in a real browser."""

import base64
import html
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfdwd
from tfdwd.benchmarking import timing_of
from tfdwd.conversion import ExportReport, LayerNoise, OutputAgreement
from tfdwd.decomposition import DecompositionReport, LayerReport
from tfdwd.evaluation import Evaluation, Score
from tfdwd.outcome import Compression, Step, Tuning
from tfdwd.plans import LayerPlan, Plan, Tradeoff, Tried

NAME = "<script>document.title='run'</script> $a_b$"


def _plan(layers: int = 4, ms: float = 0.5) -> Plan:
    found = [LayerPlan("stem", False, "reads 3 channels", "", 0, 0, 900, 900, 9, 9)]
    for number in range(1, layers):
        name = NAME if number == 1 else f"block/conv{number}"
        found.append(
            LayerPlan(
                name, True, "", "separable", 1, 0, 1000 * number, 300 * number, 90, 30,
                error=0.01 * number, ms_before=0.1 * number, ms_after=0.03 * number,
            )
        )  # fmt: skip
    tried = (
        Tried("uniform", 0.55, 0.02, 0.03, 0.93),
        Tried("integer program", ms, 0.01, 0.02, 0.95),
    )
    return Plan(
        tuple(found), f"latency={ms}", 1.0, ms, 0.01, "int8", 1, "a device", "LiteRT", 0.02, 0.95,
        tried,
    )  # fmt: skip


def _timings() -> tfdwd.BenchmarkReport:
    samples = np.linspace(1.0, 1.1, 10)
    original = timing_of("original", 4096, samples / 1000, samples / 1000)
    student = timing_of("student", 2048, samples / 2000, samples / 1000)
    return tfdwd.BenchmarkReport((original, student), "a device", 1, 10, "LiteRT 2", "2026-11-26")


def _compression() -> Compression:
    plan = _plan()
    layers = tuple(
        LayerReport(
            *(getattr(layer, name) for name in (
                "name", "replaced", "reason", "stack", "rank", "width", "macs_before",
                "macs_after", "parameters_before", "parameters_after",
            )),
            error=0.1 if layer.replaced else None,
        )
        for layer in plan.layers
    )  # fmt: skip
    agreement = OutputAgreement("scores", 0.1, 30.0, 0.99)
    exports = [
        ExportReport(
            f"{name}.tflite", size, "int8", {"CONV_2D": 3}, "2.3", "2.3", 64, (agreement,),
            (LayerNoise("block/conv2", 21.5, 0.01),),
        )
        for name, size in (("original", 4096), ("student", 2048))
    ]  # fmt: skip
    scores = [Evaluation((Score("top1", value, "scores"),), 100) for value in (0.93, 0.91)]
    tuning = Tuning(
        {"val_loss": 0.2, "val_agreement": 0.9}, {"val_loss": 0.1, "val_agreement": 0.95},
        {"loss": (0.4, 0.3), "val_loss": (0.15, 0.1), "val_agreement": (0.94, 0.95)},
    )  # fmt: skip
    return Compression(
        plan, DecompositionReport("joint", layers, 9, 5, 9, 5), tuning, *exports, *scores,
        _timings(), (Step("plan", 61.0), Step("finetune", 120.0)),
    )  # fmt: skip


def _examples() -> str:
    source = np.random.default_rng(0)
    images = source.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    original = np.eye(5, dtype=np.float32)[np.arange(20) % 5]
    student = original.copy()
    student[[3, 7]] = np.roll(original[[3, 7]], 1, axis=1)
    return tfdwd.report.examples_of(images, [original], [student])


RECORDS = {
    "compression": _compression,
    "plan": _plan,
    "tradeoff": lambda: Tradeoff((_plan(ms=0.8), _plan(ms=0.5))),
    "benchmark": _timings,
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_page_holds_every_figure_of_its_record(kind: str) -> None:
    record = RECORDS[kind]()
    page = tfdwd.report.page(record, command="tfdwd-compress --folder='a<b>'")
    shown = re.sub(r"<[^>]+>", " ", page[page.index("<body>") :])
    for part in record._parts():
        cells = [part] if isinstance(part, str) else [c for row in part[1] for c in row]
        for cell in cells:
            for line in str(cell).splitlines():
                assert line in html.unescape(shown), line
    assert "--folder=&#x27;a&lt;b&gt;&#x27;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page.replace('xlink:href="#', ""))


def test_other_records_have_no_page() -> None:
    with pytest.raises(tfdwd.Error, match=r"expected one of Compression, Plan, .* got LayerPlan"):
        tfdwd.report.page(_plan().layers[0])


def test_the_largest_disagreements_come_first() -> None:
    names = re.findall(r'alt="image (\d+)"', _examples())
    assert names[:2] == ["3", "7"] and len(names) == 12
    first = _examples().split("</figure>")[0]
    assert "class 3 (100%)" in first and "class 4 (100%)" in first


@pytest.mark.parametrize(
    ("image", "output", "expected"),
    [
        (np.zeros((8, 8, 3), np.float32), np.full((4, 4, 3), 1 / 3, np.float32), "map of classes"),
        (np.ones((8, 8, 1), np.float32), np.zeros((8, 8, 1), np.float32), "the picture"),
        (np.ones((8, 8, 7), np.float32), np.arange(6.0), "[0. 1. 2. 3.] ..."),
        (np.full((8, 8, 3), 300.0), np.array([0.25]), "[0.25]"),
        (np.full((8, 8, 3), -1.0), np.array(3), "[3]"),
    ],
)
def test_answers_of_any_kind_are_shown(image: Any, output: Any, expected: str) -> None:
    shown = tfdwd.report.examples_of(image[None], [output[None]], [output[None]])
    assert expected in shown


def test_a_picture_is_the_image() -> None:
    from matplotlib import image as files

    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    shown = tfdwd.report.examples_of(image[None], [np.zeros((1, 2))], [np.zeros((1, 2))])
    [content] = re.findall(r"base64,([^\"]+)", shown)
    found = files.imread(io.BytesIO(base64.b64decode(content)), format="png")
    np.testing.assert_array_equal((found[..., :3] * 255).round(), image)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_pictures_that_leave_the_range_a_little_are_cut_off(low: float, high: float) -> None:
    from matplotlib import image as files

    for beyond in 0.0, 0.1:
        width = high - low
        values = np.array([low - beyond * width, low + 0.5 * width, high + beyond * width])
        picture = values.reshape(1, 3, 1).astype(np.float32)
        shown = tfdwd.report.examples_of(picture[None], [np.zeros((1, 2))], [np.zeros((1, 2))])
        [content] = re.findall(r"base64,([^\"]+)", shown)
        found = files.imread(io.BytesIO(base64.b64decode(content)), format="png")
        np.testing.assert_allclose(found[0, :, 0], [0, 0.5, 1], atol=0.003)


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which("chromedriver") is None:
        pytest.skip("no chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def _open(browser: Any, folder: Path, page: str) -> None:
    path = folder / "report.html"
    path.write_text(page)
    browser.get(path.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", RECORDS)
def test_axe_finds_nothing(kind: str, scheme: str, browser: Any, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_core_python.selenium")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    examples = _examples() if kind == "compression" else ""
    _open(browser, tmp_path, tfdwd.report.page(RECORDS[kind](), examples, "tfdwd-compress"))
    violations = axe.Axe().run(browser)["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]][:2]) for v in violations] == []
    assert browser.get_log("browser") == []


def test_a_table_sorts_and_a_name_does_nothing(browser: Any, tmp_path: Path) -> None:
    _open(browser, tmp_path, tfdwd.report.page(_compression()))
    assert browser.title == "A network made faster"
    [button] = browser.find_elements("xpath", "//section[contains(., 'Layer by layer')]"
                                     "//th/button[text()='MACs']")  # fmt: skip
    column = (
        "return [...arguments[0].closest('table').tBodies[0].rows].map(r => r.cells[2].innerText)"
    )
    button.click()
    assert browser.execute_script(column, button) == ["900", "1,000", "2,000", "3,000"]
    button.send_keys("\n")  # by the keyboard
    assert browser.execute_script(column, button) == ["3,000", "2,000", "1,000", "900"]
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    assert NAME in browser.find_element("tag name", "body").text


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(width: int, browser: Any, tmp_path: Path) -> None:
    browser.set_window_size(width, 800)
    _open(browser, tmp_path, tfdwd.report.page(_compression(), _examples()))
    sizes = "return [document.documentElement.scrollWidth, innerWidth]"
    found, inner = browser.execute_script(sizes)
    assert found <= inner


def test_three_hundred_layers_sort(browser: Any, tmp_path: Path) -> None:
    _open(browser, tmp_path, tfdwd.report.page(_plan(layers=300)))
    [button] = browser.find_elements("xpath", "//th/button[text()='ms after']")
    button.click()
    last = browser.execute_script(
        "return arguments[0].closest('table').tBodies[0].rows[299].cells[0].innerText", button
    )
    assert last == "block/conv299"
