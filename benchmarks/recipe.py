"""What belongs into the recipe of `tfdwd.finetune`: its defaults, and what else was tried.

    python benchmarks/recipe.py                          (all networks and ways: a day)
    python benchmarks/recipe.py resnet8 "defaults" "rate 0.001"

Students with stack="auto" of the ResNet-8 of MLPerf Tiny, of the demo's network and of the VGG-like
one of plan_networks.py, fine-tuned against their originals on the 1,024 images (the demo: 512) that
they were decomposed on, without labels. Each way differs from the defaults by what it is called.
Top-1 is that on other training images, 4,061 of the ResNet-8, 1,536 of the demo, 4,096 of the last
one: no test image is used. Seeds are of the order of the images, of which are held back and how
they are changed. Writes recipe.csv beside this file, a row for each run, which are not run again.
Needs TFDWD_DATA.
"""

import itertools
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import numpy as np
import plan_networks
from plan_networks import cifar10

import tfdwd
from tfdwd import reporting
from tfdwd.training.augmentation import Moves

TABLE = pathlib.Path(__file__).resolve().parent / "recipe.csv"
HEADERS = ["network", "rank", "way", "seed", "before", "after", "agreement", "epochs", "minutes"]
OTHERS = 4096
RANKS, SEEDS = (1, 2), (0, 1, 2)


def resnet8():
    (images, labels), _ = common.cifar10()
    return common.resnet8(), images[:1024], (images[1024:], labels[1024:])


def demo():
    train, _ = common.fashion()
    return common.shufflenet(), train[0][:512], tuple(part[512:] for part in train)


def vgg():
    held_out = cifar10.split(32, 0).held_out
    others = tuple(part[:OTHERS] for part in held_out)
    return plan_networks.trained("vgg"), plan_networks.calibration(), others


NETWORKS = {"resnet8": resnet8, "demo": demo, "vgg": vgg}


def _moves(images: np.ndarray, **moves: Any) -> Any:
    shifts = images.shape[1] // 8, images.shape[2] // 8
    source = np.random.default_rng(0)
    return lambda batch: Moves(shifts=shifts, **moves)(batch, source)


# Options of `finetune` for images.
WAYS = {
    "defaults": lambda images: {},
    "no augmentation": lambda images: {"augment": None},
    "no mixup": lambda images: {"augment": _moves(images, mirrors=True)},
    "mixed to the end": lambda images: {"augment": _moves(images, mirrors=True, mixes=True)},
    "rate 0.0005": lambda images: {"learning_rate": 5e-4},
    "rate 0.001": lambda images: {"learning_rate": 1e-3},
    "rate 0.003": lambda images: {"learning_rate": 3e-3},
    "batches of 32": lambda images: {"batch_size": 32},
    "batches of 128": lambda images: {"batch_size": 128},
    "half of the epochs": lambda images: {"epochs": 70},
    "twice the epochs": lambda images: {"epochs": 280},
    "averaged weights": lambda images: {"ema": 0.99},
    "features": lambda images: {"features_weight": 1.0},
    "no weight decay": lambda images: {"weight_decay": 0.0},
    "frozen batch norms": lambda images: {"freeze_batch_norm": True},
    "sgd, rate 0.05": lambda images: {"optimizer": "sgd", "learning_rate": 0.05},
    "nothing held back": lambda images: {"validation": None},
}


def main(names: list[str], ways: list[str]) -> None:
    rows = common.read_rows(TABLE)
    for name in names:
        model, images, others = NETWORKS[name]()
        for rank in RANKS:
            start = tfdwd.decompose(model, images, rank=rank, stack="auto")
            for seed, way in itertools.product(SEEDS, ways):
                if [name, str(rank), way, str(seed)] in (row[:4] for row in rows):
                    continue
                student = tfdwd.flatten(start)
                began = time.perf_counter()
                options = WAYS[way](images)
                found = tfdwd.finetune(student, images, teacher=model, seed=seed, **options)
                minutes = (time.perf_counter() - began) / 60
                before, after = (
                    tfdwd.evaluate(network, others, batch_size=256).top1
                    for network in (start, student)
                )
                rows.append([
                    name, str(rank), way, str(seed), f"{before:.4f}", f"{after:.4f}",
                    f"{found.after.get('val_agreement', float('nan')):.4f}", str(len(found.epoch)),
                    f"{minutes:.1f}",
                ])  # fmt: skip
                print(*rows[-1], sep=", ", flush=True)
                common.write_rows(TABLE, HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        [name for name in given if name in NETWORKS] or list(NETWORKS),
        [name for name in given if name in WAYS] or list(WAYS),
    )
