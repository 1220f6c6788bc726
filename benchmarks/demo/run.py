"""Decomposes the demo's network with every method and shows what each costs and loses.

    make compare        (or: python benchmarks/demo/run.py)

About seven minutes on two cores; needs no network. Loads `fashion_shufflenet.keras`, which train.py
made, and the images beside it. Calibrates on 512 training images without their labels (svd on
none), fine-tunes nothing, and reports top-1 on the 4,000 test images (one standard error is about
half a point). The last students are planned: each layer is replaced by what was measured to be fast
enough on this machine and to lose least. Leaves in `compare-output/` every network as .keras and
.tflite, the table as text and CSV, and the plan.
"""

import csv
import io
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging

import tfdwd
from tfdwd import files, reporting

IMAGES = 512
HERE = pathlib.Path(__file__).parent
STUDENTS = {
    "svd, rank 1": {"data": None, "rank": 1},
    "gsvd, rank 1": {"method": "gsvd", "rank": 1},
    "channel, rank 1": {"method": "channel", "rank": 1},
    "sequential, rank 1": {"method": "sequential", "rank": 1},
    "joint, rank 1": {"method": "joint", "rank": 1},
    "auto, rank 1": {"method": "joint", "rank": 1, "stack": "auto"},
}

_OUTPUT = flags.DEFINE_string("output", "compare-output", "folder for what is made")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    model = keras.models.load_model(HERE / "fashion_shufflenet.keras", compile=False)
    with np.load(HERE / "fashion_mnist.npz") as content:
        data = dict(content)

    images = data["x_train"][:IMAGES]
    networks = {"original": model}
    for name, options in STUDENTS.items():
        print(f"{name} ...", flush=True)
        networks[name] = tfdwd.decompose(model, **{"data": images, **options})
    print("planning, which times every layer and its stacks ...", flush=True)
    plan = tfdwd.plan(model, images, latency=0.5, cache=folder / "latency.json")
    files.write_whole(folder / "plan.json", plan.to_json())
    networks["planned, half the time"] = tfdwd.decompose(model, images, rank=plan)

    paths, facts = {}, {}
    exports = [(name, network, "none") for name, network in networks.items()]
    for name in ("original", "planned, half the time"):
        exports.append((f"{name}, int8", networks[name], "int8"))
    print("exporting and testing ...", flush=True)
    for name, network, quantize in exports:
        stem = folder / name.replace(", ", "_").replace(" ", "_")
        if quantize == "none":
            files.save_model(network, stem.with_suffix(".keras"))
        paths[name] = stem.with_suffix(".tflite")
        exported = tfdwd.export(network, paths[name], quantize=quantize, data=images[:256])
        accuracy = tfdwd.evaluate(paths[name], (data["x_test"], data["y_test"]))
        cost = tfdwd.costs.count(network)
        facts[name] = accuracy.top1, cost.macs, cost.parameters, exported.bytes
    print("timing ...", flush=True)
    timings = tfdwd.benchmark(paths)

    rows = [
        (
            timing.name, f"{top1:.4f}", f"{macs / 1e6:.2f}", f"{parameters / 1e3:.0f}",
            f"{size / 1024:.0f}", f"{timing.median_ms:.3f}", f"{timing.speed_up:.2f}",
        )
        for timing in timings.timings
        for top1, macs, parameters, size in [facts[timing.name]]
    ]  # fmt: skip
    headers = ["network", "top-1", "MMACs", "k params", "KiB", "ms", "speed-up"]
    text = (
        f"{reporting.table(headers, rows)}\n\nFashion-MNIST, {len(data['x_test'])} test images, "
        f"calibrated on {IMAGES} unlabelled ones, not fine-tuned; "
        f"{timings.threads} thread, {timings.runtime}, {timings.device}, {timings.date}\n"
    )
    sheet = io.StringIO()
    csv.writer(sheet, lineterminator="\n").writerows([headers, *rows])
    files.write_whole(folder / "table.txt", text)
    files.write_whole(folder / "table.csv", sheet.getvalue())
    print(f"\n{plan}\n\n{text}\nfiles are in {folder}/")


if __name__ == "__main__":
    app.run(main)
