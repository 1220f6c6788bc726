"""Whether .tflite files give on ARM what they give on x86: the demo's networks, under qemu.

    python benchmarks/arm/parity.py        (about 8 minutes on two cores, 2 of them to plan)

The original, the decomposed one of stack "auto" and the planned one of `make compare`, in float32,
int8 and dynamic, with XNNPACK and one thread on this machine and on the three processors of
emulator.py, on 64 test images. Each network is compared as it is ("probabilities") and without its
softmax ("logits"): an int8 probability is 0 or 1 more often than not, and would hide much.
Expected:

- int8 logits: bit for bit the same. Sums of whole numbers are exact in any order, and the kernels
  of XNNPACK for both processors scale them with one float32 product, rounded to nearest.
- int8 probabilities: at most one step apart. XNNPACK has no int8 softmax; LiteRT's own is another
  one for AArch64 (TFLITE_SOFTMAX_USE_UINT16_LUT in optimized_ops.h: exponentials of 16 bits, where
  x86 has float32). Of 10 classes each sum is wrong by at most 11 halves of 1/65535, that is 0.022
  of an output step of 1/256: a probability that near the middle of two steps may go to the other.
- float32: at most 1e-5 of the largest output. Sums of float32 depend on their order: each is wrong
  by about 6e-8 times the root of its length (at most 864 here), and 28 layers add up.
- dynamic: no limit that follows from arithmetic. Such a file rounds the activations to 8 bits in
  every layer while it runs. Layer after layer the processors differ by 1e-7 or not at all, until
  one value lies so near the middle of two steps that this sends it the other way. "nudged" shows
  how much that is: the largest change of the output on x86 alone when the image is made brighter
  or darker by one or two millionths (as much as float32 differs). Expected: at most twice that.

"differ" counts the values that are not the same. "largest" is the largest difference: in steps of
the output (LSB) where that is int8, else over the largest output. No speeds: qemu's say nothing.
Writes parity.csv beside this file; exits with an error where it is otherwise than expected.
"""

import csv
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import emulator
import keras
import numpy as np
import outputs

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).resolve().parent
DEMO = HERE.parent / "demo"
IMAGES = 64
NUDGES = (1 - 2e-6, 1 - 1e-6, 1 + 1e-6, 1 + 2e-6)
PRECISIONS = {"none": "float32", "int8": "int8", "dynamic": "dynamic"}
FLOAT_LIMIT = 1e-5


def networks() -> dict[str, keras.Model]:
    """Three of the demo's networks, made as `make compare` makes them."""
    model = keras.models.load_model(DEMO / "fashion_shufflenet.keras", compile=False)
    images = _images("x_train", 512)
    plan = tfdwd.plan(model, images, latency=0.5)
    return {
        "original": model,
        "auto, rank 1": tfdwd.decompose(model, images, stack="auto"),
        "planned, half the time": tfdwd.decompose(model, images, rank=plan),
    }


def export(model: keras.Model, file: pathlib.Path, quantize: str, output: str) -> None:
    """Exports one network, with its softmax (output "probabilities") or without ("logits")."""
    if output == "logits":
        weights = model.get_weights()
        model = keras.models.clone_model(model)
        model.set_weights(weights)
        model.layers[-1].activation = keras.activations.linear
    tfdwd.export(model, file, quantize=quantize, data=_images("x_train", 256))


def compare(here: np.ndarray, there: np.ndarray) -> tuple[int, float]:
    """Counts what differs between two machines.

    Args:
      here, there: outputs of one file, of the same shape and dtype.

    Returns:
      How many values differ, and the largest difference: in whole steps for int8, as a share of
      the largest magnitude of `here` for float32.
    """
    if here.shape != there.shape or here.dtype != there.dtype:
        raise ValueError(f"{here.dtype} {here.shape} against {there.dtype} {there.shape}")
    apart = np.abs(here.astype(np.float64) - there.astype(np.float64))
    scale = np.abs(here).max() if here.dtype.kind == "f" else 1
    return int(np.count_nonzero(apart)), float(apart.max() / scale)


def expected(precision: str, output: str, largest: float, nudged: float) -> bool:
    """Whether a largest difference is one that the text above explains."""
    steps = {"logits": 0.0, "probabilities": 1.0}
    limits = {"int8": steps[output], "float32": FLOAT_LIMIT, "dynamic": 2 * nudged}
    return largest <= limits[precision]


def on_arm(
    python: pathlib.Path, files: list[pathlib.Path], images: np.ndarray
) -> dict[str, np.ndarray]:
    """The outputs of the files, by their stems, as an emulated Python computes them."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        command = [python, HERE / "outputs.py", f"{folder}/images.npy", f"{folder}/outputs.npz"]
        environment = {**os.environ, "PYTHONPATH": str(emulator.ROOT)}
        subprocess.run([*command, *files], env=environment, check=True)
        with np.load(f"{folder}/outputs.npz") as content:
            return dict(content)


def _images(name: str, count: int) -> np.ndarray:
    with np.load(DEMO / "fashion_mnist.npz") as content:
        return content[name][:count]


def main() -> None:
    pythons = emulator.prepare()
    images = _images("x_test", IMAGES)
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for network, model in networks().items():
            for output in ("probabilities", "logits"):
                for quantize, precision in PRECISIONS.items():
                    file = pathlib.Path(folder) / f"{len(files)}.tflite"
                    export(model, file, quantize, output)
                    files[network, output, precision] = file
        arm = {
            name: on_arm(python, list(files.values()), images) for name, python in pythons.items()
        }
        for key, file in files.items():
            here = outputs.outputs(file, images)
            nudged = max(compare(here, outputs.outputs(file, images * n))[1] for n in NUDGES)
            row = [*key, here.size]
            for name, found in arm.items():
                differ, largest = compare(here, found[file.stem])
                row += [differ, f"{largest:.2g}"]
                if not expected(key[2], key[1], largest, nudged):
                    wrong.append(f"{', '.join(key)} on {name}: {differ} differ by up to {largest}")
            rows.append([*row, f"{nudged:.2g}"])
            print(*rows[-1], flush=True)
    headers = ["network", "output", "precision", "values"]
    headers += [f"{name} {what}" for name in pythons for what in ("differ", "largest")]
    headers.append("nudged")
    print(reporting.table(headers, rows))
    with open(HERE / "parity.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([headers, *rows])
    if wrong:
        sys.exit("otherwise than expected:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
