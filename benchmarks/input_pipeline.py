"""Images per second of the training pipeline, against only reading and decoding the same JPEGs.

    python benchmarks/input_pipeline.py        (about two minutes on two cores)

4,096 stand-ins for photographs of 500 x 375 px (CIFAR-10 images enlarged, with noise, as JPEG of
quality 95: about 100 KiB each, as ImageNet's are on average) in ImageNet's layout; batches of 64 at
224 px. Both are timed in turns, the median of the rounds' ratios is printed. Wanted: at least 0.85.
Only the crop is decoded, which is why it could be above 1. Needs TFDWD_DATA. Writes
input_pipeline.csv beside this file.
"""

import csv
import os
import pathlib
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfdwd import data, reporting

DATA = pathlib.Path(os.environ.get("TFDWD_DATA", "../shared/data"))
HERE = pathlib.Path(__file__).parent
HEADERS = ["images/s", "read and decode only", "ratio", "lowest", "highest", "cores"]
IMAGES, SHARDS, ROUNDS = 4096, 8, 9


def write(folder: pathlib.Path) -> int:
    """Writes the shards; returns their bytes."""
    with np.load(DATA / "cifar10_subset.npz") as content:
        images = content["x_train"][:IMAGES]
    source = np.random.default_rng(0)
    for shard in range(SHARDS):
        name = str(folder / f"train-{shard:05}-of-{SHARDS:05}")
        with tf.io.TFRecordWriter(name) as writer:
            for image in images[shard::SHARDS]:
                large = tf.image.resize(image, (375, 500), "bicubic").numpy()
                large += source.normal(size=large.shape) * 11
                encoded = tf.io.encode_jpeg(np.clip(large, 0, 255).astype(np.uint8), quality=95)
                feature = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[encoded.numpy()])
                    ),
                    "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
                }
                features = tf.train.Features(feature=feature)
                writer.write(tf.train.Example(features=features).SerializeToString())
    return sum(path.stat().st_size for path in folder.iterdir())


def per_second(dataset: tf.data.Dataset, each: int) -> float:
    start, count = time.perf_counter(), 0
    for _ in dataset:
        count += each
    return count / (time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        size = write(pathlib.Path(name))
        print(f"{size / IMAGES / 1024:.0f} KiB an image")
        source = data.tfrecords(name, "train")

        def decoded(encoded: Any, label: Any) -> Any:
            return tf.shape(tf.io.decode_jpeg(encoded, channels=3))

        plain = source.examples(0, 1, 0).map(decoded, num_parallel_calls=tf.data.AUTOTUNE)
        plain = plain.prefetch(tf.data.AUTOTUNE)
        rows = []
        for number in range(ROUNDS + 1):
            pipeline = data.training(source, 64, epoch=number)
            rows.append((per_second(pipeline, 64), per_second(plain, 1)))
    ours, theirs = np.array(rows[1:]).T  # the first round warms up
    ratios = ours / theirs
    row = [
        f"{np.median(ours):.0f}", f"{np.median(theirs):.0f}", f"{np.median(ratios):.2f}",
        f"{ratios.min():.2f}", f"{ratios.max():.2f}", os.cpu_count(),
    ]  # fmt: skip
    print(reporting.table(HEADERS, [row]))
    with open(HERE / "input_pipeline.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADERS, row])


if __name__ == "__main__":
    main()
