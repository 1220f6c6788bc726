"""`tfdwd-compress` on the ResNet-8 of MLPerf Tiny: what it reaches, and what kills do to it.

    python benchmarks/compress.py            (10 runs of 2 to 8 minutes on two cores)
    python benchmarks/compress.py --kills    (5 to 10 minutes)

The command as a user gives it, its defaults alone, with the first 1,024 and with all 5,085
unlabelled training images of `common.cifar10`, for 0.5 and 0.35 of the time, in float32 and int8;
top-1 of the .tflite files on all 1,017 test images, once, where one standard error is one point.
Times are parts of the original's in the same precision, with their 95 % interval. Where a processor
has int8 instructions the original's int8 file is so fast that students hardly gain: what the
command refuses stands there with the least that it offers, and int8 is run for 0.8 of the time,
too. Writes compress.csv beside this file; rows that are there already are not made again. Needs
TFDWD_DATA.

--kills runs it once whole, and once more from the same plan (which is made of measured times, so
another one would differ), killed at five random moments; prints whether what each step left is the
same to the last bit.
"""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np

import tfdwd
from tfdwd import reporting

PATH = pathlib.Path(__file__).resolve().parent / "compress.csv"
HEADERS = [
    "images", "latency", "precision", "time", "low", "high", "original", "top-1", "plan s",
    "fine-tuning s", "whole s",
]  # fmt: skip
PRECISIONS = {"float32": "none", "int8": "int8"}
RUNS = [
    (images, latency, precision)
    for precision in PRECISIONS
    for images in ("1024", "5085")
    for latency in (("0.8", "0.5", "0.35") if precision == "int8" else ("0.5", "0.35"))
]
KILLS, KILLED_WITHIN = 5, (10.0, 25.0)  # seconds from the start of the command
MADE = ["decomposed.keras", "student.keras", "tuning.json", "original.tflite", "student.tflite"]


def command(
    inputs: pathlib.Path, folder: pathlib.Path, images: str, latency: str, precision: str
) -> list[str]:
    return [
        str(pathlib.Path(sys.executable).parent / "tfdwd-compress"),
        f"--model={common.DATA / 'mlperf_tiny_resnet8.h5'}", f"--images={inputs / 'images.npz'}",
        f"--images_key=x{images}", f"--latency={latency}", f"--quantize={PRECISIONS[precision]}",
        f"--test={inputs / 'images.npz'}", "--test_key=x", f"--test_labels={inputs / 'images.npz'}",
        "--test_labels_key=y", f"--folder={folder}",
    ]  # fmt: skip


def make_inputs(folder: pathlib.Path) -> None:
    (train, _), (x, y) = common.cifar10()
    np.savez(folder / "images.npz", x=x, y=y, **{f"x{n}": train[:n] for n in (1024, 5085)})


def row(images: str, latency: str, precision: str) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        inputs = pathlib.Path(name)
        make_inputs(inputs)
        start = time.perf_counter()
        with open(inputs / "log", "w") as log:
            given = command(inputs, inputs / "out", images, latency, precision)
            done = subprocess.run(given, stderr=log, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            said = (inputs / "log").read_text().splitlines()[-1]
            least = re.search(r"the least is .*, ([0-9.]+) of the original's", said)
            if least is None:
                raise SystemExit(said)
            refused = f"refused: the least is {least[1]}"
            return [images, latency, precision, refused, *[""] * 6, f"{seconds:.0f}"]
        result = tfdwd.Compression.from_json((inputs / "out" / "result.json").read_text())
    own = result.benchmark.timings[1]
    steps = {step.name: step.seconds for step in result.steps}
    return [
        images, latency, precision, f"{1 / own.speed_up:.3f}", f"{1 / own.speed_up_high:.3f}",
        f"{1 / own.speed_up_low:.3f}", f"{result.original_score['top1']:.4f}",
        f"{result.student_score['top1']:.4f}", f"{steps['plan']:.0f}", f"{steps['finetune']:.0f}",
        f"{seconds:.0f}",
    ]  # fmt: skip


def content(path: pathlib.Path) -> bytes:
    """Of a .keras file the weights: it says when it was saved, too."""
    if path.suffix != ".keras":
        return path.read_bytes()
    weights = keras.models.load_model(path, compile=False).get_weights()
    return b"".join(array.tobytes() for array in weights)


def kills() -> None:
    with tempfile.TemporaryDirectory() as name:
        inputs = pathlib.Path(name)
        make_inputs(inputs)
        whole, killed = inputs / "whole", inputs / "killed"
        subprocess.run(command(inputs, whole, "1024", "0.5", "float32"), check=True)
        killed.mkdir()
        for file in ("plan.json", "latency.json"):
            shutil.copy(whole / file, killed / file)
        steps = json.loads((whole / "steps.json").read_text())
        (killed / "steps.json").write_text(json.dumps({"plan": steps["plan"]}))
        again = command(inputs, killed, "1024", "0.5", "float32")
        chance = random.Random(0)
        for _ in range(KILLS):
            child = subprocess.Popen(again)
            moment = chance.uniform(*KILLED_WITHIN)
            try:
                child.wait(moment)
                print(f"over before {moment:.1f} s", flush=True)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                done = json.loads((killed / "steps.json").read_text())
                print(f"killed after {moment:.1f} s; whole steps: {', '.join(done)}", flush=True)
        subprocess.run(again, check=True)
        for file in MADE:
            same = content(whole / file) == content(killed / file)
            print(f"{file}: {'the same to the last bit' if same else 'DIFFERS'}")


def main() -> None:
    if "--kills" in sys.argv:
        kills()
        return
    rows = common.read_rows(PATH)
    for run in RUNS:
        if list(run) not in [known[:3] for known in rows]:
            rows.append(row(*run))
            print(*rows[-1], flush=True)
            common.write_rows(PATH, HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
