"""The notebook of colab/, run from top to bottom."""

import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Executed, with its files in a temporary folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(ROOT / "colab/tfdwd.ipynb", 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    assert not any(cell.get("outputs") for cell in notebook.cells)
    first.source = first.source.replace('"students"', repr(str(folder)))
    with np.load(ROOT / "benchmarks/demo/fashion_mnist.npz") as content:
        few = {name: content[name][:1000] for name in ("x_train", "x_test", "y_test")}
    np.savez(folder / "few.npz", **few)
    images = '"benchmarks/demo/fashion_mnist.npz"'
    assert images in first.source
    first.source = first.source.replace(images, repr(str(folder / "few.npz")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # times are measured anew
        client = nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}
        )
        client.execute()
    return notebook, folder


def _outputs(notebook, start):
    """(text, HTML, number of pictures) of the code cell whose source has these words."""
    [cell] = [c for c in notebook.cells if c.cell_type == "code" and start in c.source]
    data = [output.get("data", {}) for output in cell.outputs]
    text = "".join(output.get("text", "") for output in cell.outputs)
    return text, "".join(d.get("text/html", "") for d in data), sum("image/png" in d for d in data)


def _top1(text):
    return [float(value) for value in re.findall(r"top-1 ([0-9.]+)", text)]


def test_the_notebook_ends_with_faster_files(notebook):
    cells, folder = notebook
    [original] = _top1(_outputs(cells, "original:")[0])
    assert original > 0.92  # 0.9397 on all 4,000 images
    [rank1] = _top1(_outputs(cells, "rank=1")[0])
    assert 0.85 < rank1 < original
    [planned] = _top1(_outputs(cells, "rank=plan")[0])
    [tuned] = _top1(_outputs(cells, "fine-tuned:")[0])
    assert min(planned, tuned) > rank1
    in_files = _top1(_outputs(cells, "tfdwd.export")[0])
    assert in_files[0] == pytest.approx(original, abs=0.001)
    assert in_files[2] == pytest.approx(tuned, abs=0.001)
    assert in_files[1] > original - 0.01 and in_files[3] > tuned - 0.01  # int8
    names = sorted(path.name for path in folder.glob("*.tflite"))
    assert names == [f"{n}_{q}.tflite" for n in ("original", "student") for q in ("int8", "none")]
    assert all(name in _outputs(cells, "colab.download")[0] for name in names)


def test_results_show_themselves_as_tables_and_plots(notebook):
    cells, _ = notebook
    _, decomposed, _ = _outputs(cells, "rank=1")
    assert "<th>layer</th>" in decomposed and "method joint; MACs" in decomposed
    _, planned, plots = _outputs(cells, "tfdwd.plan(")
    assert "<th>why kept</th>" in planned and "latency=0.6: " in planned and plots == 1
    _, exported, _ = _outputs(cells, "tfdwd.export")
    assert exported.count("<table>") == 6  # agreement of four files, layers of two
    _, timed, plots = _outputs(cells, "tfdwd.benchmark")
    assert "<th>speed-up</th>" in timed and plots == 1
    # The stacks were measured to be faster, so the student is: by how much, noise decides.
    rows = re.findall(r"<td>student</td>.*?<td>([0-9.]+)x</td>", timed)
    assert len(rows) == 1 and float(rows[0]) > 1
