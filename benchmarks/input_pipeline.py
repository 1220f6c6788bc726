"""Images per second of the training pipeline, against only reading and decoding the same JPEGs.

    python benchmarks/input_pipeline.py        (about three minutes on two cores)

4,096 stand-ins for photographs of 500 x 375 px (CIFAR-10 images enlarged, with noise, as JPEG of
quality 95: about 100 KiB each, as ImageNet's are on average) in ImageNet's layout, each there four
times; batches of 64 at 224 px. The clock runs from the first batch, for as long as there is still
to be read: the buffer that shuffles is filled once in an epoch, which is a hundredth of ImageNet's
and most of this one's. All are timed in turns, the median of the rounds' ratios is printed, also
by CPU time, which a busy machine changes less. Wanted: at least 0.9. Only the crop is decoded,
which is why it could be above 1. "crop and resize only" is a third pipeline, which decodes random
crops and resizes them, and does nothing else: more can hardly be had. Needs TFDWD_DATA. Writes
input_pipeline.csv beside this file.
"""

import os
import pathlib
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import numpy as np
import tensorflow as tf

from tfdwd import data, reporting

HERE = pathlib.Path(__file__).parent
HEADERS = [
    "images/s", "read and decode only", "ratio", "lowest", "highest", "ratio by CPU time",
    "crop and resize only", "cores",
]  # fmt: skip
IMAGES, TIMES, SHARDS, ROUNDS = 4096, 4, 8, 5
COUNTED = 6144  # images in each turn; 10,000 are in the buffer, the others still to be read


def write(folder: pathlib.Path) -> int:
    """Writes the shards; returns their bytes."""
    (images, _), _ = common.cifar10()
    source = np.random.default_rng(0)
    for shard in range(SHARDS):
        first, *others = [
            folder / f"train-{shard + copy * SHARDS:05}-of-{TIMES * SHARDS:05}"
            for copy in range(TIMES)
        ]
        with tf.io.TFRecordWriter(str(first)) as writer:
            for image in images[shard:IMAGES:SHARDS]:
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
        for other in others:
            os.link(first, other)
    return sum(path.stat().st_size for path in folder.iterdir())


def per_second(dataset: tf.data.Dataset, each: int) -> tuple[float, float]:
    """Images in a second, by the clock and by CPU time."""
    batches = iter(dataset)
    next(batches)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(COUNTED // each):
        next(batches)
    return COUNTED / (time.perf_counter() - start), COUNTED / (time.process_time() - busy)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        size = write(pathlib.Path(name))
        print(f"{size / IMAGES / TIMES / 1024:.0f} KiB an image")
        source = data.tfrecords(name, "train")

        def decoded(encoded: Any, label: Any) -> Any:
            return tf.shape(tf.io.decode_jpeg(encoded, channels=3))

        def resized(encoded: Any, label: Any) -> Any:
            begin, extent, _ = tf.image.sample_distorted_bounding_box(
                tf.io.extract_jpeg_shape(encoded), [[[0.0, 0.0, 1.0, 1.0]]], area_range=(0.08, 1.0)
            )
            window = tf.concat([begin[:2], extent[:2]], 0)
            return tf.image.resize(tf.io.decode_and_crop_jpeg(encoded, window, 3), (224, 224))

        others = [
            source.examples(0, 1, 0)
            .map(lambda example, *_, made=made: made(*source.parsed(example)), tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            for made in (decoded, resized)
        ]
        rows = []
        for number in range(ROUNDS + 1):
            pipeline = data.training(source, 64, epoch=number)
            rows.append((per_second(pipeline, 64), *(per_second(other, 1) for other in others)))
    # The first round warms up. (rounds, ours or theirs, by clock or by CPU time)
    found = np.array(rows[1:])
    ours, theirs, _ = np.median(found[..., 0], 0)
    ratios = found / found[:, 1:2]
    by_clock, (by_cpu, _, bare) = ratios[:, 0, 0], np.median(ratios[..., 1], 0)
    row = [
        f"{ours:.0f}", f"{theirs:.0f}", f"{np.median(by_clock):.2f}", f"{by_clock.min():.2f}",
        f"{by_clock.max():.2f}", f"{by_cpu:.2f}", f"{bare:.2f}", os.cpu_count(),
    ]  # fmt: skip
    print(reporting.table(HEADERS, [row]))
    common.write_rows(HERE / "input_pipeline.csv", HEADERS, [row])


if __name__ == "__main__":
    main()
