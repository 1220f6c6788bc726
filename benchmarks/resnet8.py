"""Every method on the ResNet-8 of MLPerf Tiny: accuracy without labels or fine-tuning, and time.

    python benchmarks/resnet8.py        (about 3 minutes on two cores)

Calibrates on the first 1,024 images of `x_train`, without labels; reports top-1 on all 1,017 test
images (one standard error is one point; one image is 0.1). Settings were chosen on the other
4,061 training images. Expected: joint at rank 1 / 2 / 3 at least 0.52 / 0.76 / 0.82 and above
sequential, sequential above channel, auto at least 0.61 / 0.80 / 0.835; joint in float32 on one
thread at least 3 times as fast as the original at rank 1 and 1.7 times at rank 2.
Needs TFDWD_DATA. Writes resnet8.csv beside this file.
"""

import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import numpy as np

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).parent
METHODS = {
    "svd": {"method": "svd"},
    "gsvd": {"method": "gsvd"},
    "channel": {"method": "channel"},
    "sequential": {"method": "sequential"},
    "joint": {"method": "joint"},
    "auto": {"method": "joint", "stack": "auto"},
}


def main() -> None:
    model, ((train, _), test) = common.resnet8(), common.cifar10()
    images = train[:1024]
    networks = {"original": model}
    for rank in (1, 2, 3):
        for name, options in METHODS.items():
            networks[f"{name} {rank}"] = tfdwd.decompose(model, images, rank=rank, **options)
            print(f"{name} {rank}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: f"{folder}/{name}.tflite" for name in networks}
        for name, network in networks.items():
            report = tfdwd.export(network, paths[name], data=images[:64].astype(np.float32))
            accuracy = tfdwd.evaluate(network, test)
            costs = tfdwd.costs.count(network)
            rows.append([name, accuracy.top1, costs.macs, costs.parameters, report.bytes,
                         report.outputs[0].largest_difference])  # fmt: skip
        timings = tfdwd.benchmark(paths)
    headers = [
        "network", "top-1", "MACs", "parameters", "bytes", "tflite difference", "ms", "speed-up",
        "low", "high",
    ]  # fmt: skip
    table = [
        (
            name, f"{top1:.4f}", macs, parameters, size, f"{gap:.1e}", f"{t.median_ms:.4f}",
            f"{t.speed_up:.2f}", f"{t.speed_up_low:.2f}", f"{t.speed_up_high:.2f}",
        )
        for (name, top1, macs, parameters, size, gap), t in zip(rows, timings.timings, strict=True)
    ]  # fmt: skip
    print(reporting.table(headers, table))
    print(f"{timings.threads} thread, {timings.runtime}, {timings.device}, {timings.date}")
    common.write_rows(HERE / "resnet8.csv", headers, table)


if __name__ == "__main__":
    main()
