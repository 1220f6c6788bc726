"""`tfdwd.tradeoff` of the ResNet-8: eight plans along the front, and what their students score.

    python benchmarks/tradeoff.py            (about a quarter of an hour on two cores)

Defaults alone, 1,024 unlabelled images of CIFAR-10; each plan's student is decomposed, not
fine-tuned, and timed and scored as in plan.py: top-1 on all 1,017 test images, where one standard
error is one point. Writes tradeoff.csv and tradeoff.png beside this file. Needs TFDWD_DATA.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import plan

import tfdwd
from tfdwd import reporting

HERE = pathlib.Path(__file__).parent
HEADERS = [
    "plan says", "time", "low", "high", "measured loss", "agreement", "top-1", "tried",
]  # fmt: skip


def main() -> None:
    model, images, test = plan.NETWORKS["resnet8"]()
    found = tfdwd.tradeoff(model, images)
    reporting.plot(found).savefig(HERE / "tradeoff.png", dpi=100)
    rows = []
    for one in found.plans:
        student = tfdwd.decompose(model, images, rank=one)
        own = plan.measured(model, student, images, "none", test)
        rows.append([
            f"{one.ms_after / one.ms_before:.3f}", f"{own.time:.3f}", f"{own.low:.3f}",
            f"{own.high:.3f}", f"{one.loss:.4f}", f"{one.agreement:.4f}", f"{own.top1:.4f}",
            str(len(one.tried)),
        ])  # fmt: skip
        print(*rows[-1], flush=True)
    common.write_rows(HERE / "tradeoff.csv", HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
