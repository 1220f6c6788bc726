"""Three tasks beside classification, each a small network of an uncommon or open size.

- Super-resolution: twice the size of CIFAR-10 images, in the form of EDSR (Lim et al. 2017, arXiv
  1707.02921) without its batch norms. PSNR; any height and width.
- Segmentation: the class of each pixel of a scene of 40x56, in the form of U-Net (Ronneberger et
  al. 2015, arXiv 1505.04597) after a stem of stride 2. Mean IoU.
- Detection: classes and boxes of the articles in a scene of any size, one prediction for each cell
  of 8x8 pixels, in the form of FCOS (Tian et al. 2019, arXiv 1904.01355). Two outputs; AP50.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import scenes
import tensorflow as tf

layers = keras.layers
STRIDE = 8  # pixels of a cell of the detector
SCENE = (40, 56)
CANVAS = (40, 64)


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      name: of its files.
      score: what its metric is called in the table.
      unit: what one unit of loss is called, and how many of them the metric's 1 is.
      wanted: loss that is accepted at half the time, in that unit.
      network: makes it, untrained.
      examples: a function of the part that gives (images, labels).
      targets: turns labels into what the losses are taken against.
      losses: for `keras.Model.compile`.
      metric: for `tfdwd.evaluate`, with those labels.
      epochs, rate: of the training.
    """

    name: str
    score: str
    unit: tuple[str, float]
    wanted: float
    network: Callable[[], keras.Model]
    examples: Callable[[str], tuple[np.ndarray, np.ndarray]]
    targets: Callable[[np.ndarray], Any]
    losses: Any
    metric: Any
    epochs: int
    rate: float


def conv(x, filters, size=3, strides=1, norm=True):
    """A regular convolution, a batch norm and ReLU."""
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=not norm)(x)
    return layers.ReLU()(layers.BatchNormalization()(x) if norm else x)


# ---------------------------------------------------------------------- super-resolution


def super_resolution() -> keras.Model:
    image = keras.Input((None, None, 3), name="image")
    first = layers.Conv2D(32, 3, padding="same")(layers.Rescaling(1 / 127.5, -1)(image))
    x = first
    for _ in range(4):
        inner = layers.Conv2D(32, 3, padding="same")(conv(x, 32, norm=False))
        x = layers.Add()([x, inner])
    x = layers.Add()([first, layers.Conv2D(32, 3, padding="same")(x)])
    x = layers.Conv2DTranspose(3, 4, 2, padding="same")(x)
    larger = layers.UpSampling2D(2, interpolation="bilinear")(image)
    output = layers.Add(name="larger")([larger, layers.Rescaling(127.5)(x)])
    return keras.Model(image, output, name="super_resolution")


def image_pairs(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of half the size, and the images themselves."""
    images = scenes.small_images(part)
    small = tf.image.resize(images, (16, 16), "bicubic", antialias=True)
    return np.clip(np.round(small), 0, 255).astype(np.uint8), images


# ---------------------------------------------------------------------- segmentation


def segmentation() -> keras.Model:
    image = keras.Input((*SCENE, 3), name="image")
    x = conv(layers.Rescaling(1 / 127.5, -1)(image), 24, strides=2)
    skips = []
    for filters in (24, 48):
        x = conv(x, filters)
        skips.append(x)
        x = conv(x, 2 * filters, strides=2)
    x = conv(x, 96)
    for filters, skip in zip((48, 24), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 2, 2, padding="same")(x)
        x = conv(layers.Concatenate()([x, skip]), filters)
        x = conv(x, filters)
    x = layers.Conv2DTranspose(len(scenes.CLASSES), 2, 2, padding="same")(x)
    return keras.Model(image, layers.Softmax(name="mask")(x), name="segmentation")


def masks(part: str) -> tuple[np.ndarray, np.ndarray]:
    count = {"train": 20000, "calibration": 4096, "test": 2000}[part]
    images, classes, _ = scenes.scenes(part, count, SCENE, seed=1)
    return images, classes


# ---------------------------------------------------------------------- detection


def detection() -> keras.Model:
    image = keras.Input((None, None, 3), name="image")
    x = conv(layers.Rescaling(1 / 127.5, -1)(image), 24, strides=2)
    for filters in (24, 48, 96):
        if filters > 24:
            x = conv(x, filters, strides=2)
        inner = layers.BatchNormalization()(
            layers.Conv2D(filters, 3, padding="same", use_bias=False)(conv(x, filters))
        )
        x = layers.ReLU()(layers.Add()([x, inner]))
    kinds = layers.Conv2D(len(scenes.CLASSES), 1)(conv(x, 96))
    boxes = layers.Conv2D(4, 1)(conv(x, 96))
    outputs = {
        "classes": layers.Softmax(name="classes")(kinds),
        "boxes": layers.ReLU(name="boxes")(boxes),
    }
    return keras.Model(image, outputs, name="detection")


def objects(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Scenes, and their objects (count, 3, 5) as `scenes.scenes` gives them."""
    count = {"train": 20000, "calibration": 4096, "test": 2000}[part]
    images, _, found = scenes.scenes(part, count, CANVAS, seed=2)
    return images, found


def cell_targets(found: np.ndarray) -> dict[str, np.ndarray]:
    """What each cell is to say of the object around whose middle it lies.

    Returns:
      "classes" (count, rows, columns) int32; "boxes" (count, rows, columns, 5): distances from the
      cell's middle to top, left, bottom and right in cells, and 1 where there is an object.
    """
    rows, columns = CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    classes = np.zeros((len(found), rows, columns), np.int32)
    boxes = np.zeros((len(found), rows, columns, 5), np.float32)
    middle = np.stack(np.mgrid[:rows, :columns], -1) * STRIDE + STRIDE / 2
    for place in range(scenes.MOST):
        kind, box = found[:, place, 0], found[:, place, None, None, 1:]
        distances = np.concatenate([middle - box[..., :2], box[..., 2:] - middle], -1)
        # The cells in the middle half of the box, or the one that holds its middle.
        offset = np.abs(distances[..., :2] - distances[..., 2:]) / 2
        reach = np.maximum((box[..., 2:] - box[..., :2]) / 4, STRIDE / 2)
        inside = (offset <= reach).all(-1) & (kind > 0)[:, None, None]
        classes = np.where(inside, kind[:, None, None].astype(np.int32), classes)
        wanted = np.concatenate([distances / STRIDE, np.ones((*inside.shape, 1))], -1)
        boxes = np.where(inside[..., None], wanted, boxes).astype(np.float32)
    return {"classes": classes, "boxes": boxes}


def box_loss(wanted, found):
    """Absolute error of the distances, in cells, where there is an object."""
    there = wanted[..., 4:]
    error = keras.ops.abs(wanted[..., :4] - found) * there
    return keras.ops.sum(error) / (4 * keras.ops.sum(there) + 1)


def detections(classes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What one image's cells say, the surest first and one for each object.

    Args:
      classes: (rows, columns, classes), probabilities; class 0 is the background.
      boxes: (rows, columns, 4), distances in cells as of `cell_targets`.

    Returns:
      (detections, 6): probability, class, top, left, bottom, right in pixels. Of two that overlap
      by more than half the surer one stays (non-maximum suppression).
    """
    middle = np.stack(np.mgrid[: len(boxes), : boxes.shape[1]], -1) * STRIDE + STRIDE / 2
    distances = boxes * STRIDE
    corners = np.concatenate([middle - distances[..., :2], middle + distances[..., 2:]], -1)
    sure, kind = classes[..., 1:].max(-1), classes[..., 1:].argmax(-1) + 1
    found = np.concatenate([sure[..., None], kind[..., None], corners], -1).reshape(-1, 6)
    found = found[found[:, 0] > 0.05]
    left, kept = found[np.argsort(-found[:, 0], kind="stable")], []
    while len(left):
        kept.append(left[0])
        apart = scenes.overlap(left[:1, 2:], left[1:, 2:])[0] <= 0.5
        left = left[1:][apart]
    return np.array(kept).reshape(-1, 6)


class AP50(keras.metrics.Metric):
    """Average precision at an overlap (IoU) of at least 0.5, mean of the classes.

    Everingham et al. 2010, "The Pascal visual object classes challenge", section 4.2, with the area
    under the whole curve as from 2010 on.
    """

    def __init__(self, name: str = "ap50", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.reset_state()

    def reset_state(self) -> None:
        self.found: list[tuple[float, int, bool]] = []  # probability, class, whether it is right
        self.objects = np.zeros(len(scenes.CLASSES), int)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        wanted, classes, boxes = map(np.asarray, (y_true, y_pred["classes"], y_pred["boxes"]))
        for row in range(len(wanted)):
            objects = wanted[row][wanted[row, :, 0] > 0]
            self.objects += np.bincount(objects[:, 0].astype(int), minlength=len(self.objects))
            free = np.ones(len(objects), bool)
            for sure, kind, *box in detections(classes[row], boxes[row]):
                fits = scenes.overlap(np.array([box]), objects[:, 1:])[0]
                fits = np.where(free & (objects[:, 0] == kind), fits, 0)
                right = fits.max() >= 0.5
                free[fits.argmax()] &= not right
                self.found.append((sure, int(kind), bool(right)))

    def result(self) -> float:
        precisions = []
        for kind in np.flatnonzero(self.objects):
            ranked = sorted((item for item in self.found if item[1] == kind), key=lambda x: -x[0])
            right = np.cumsum([item[2] for item in ranked])
            precision = right / np.arange(1, len(right) + 1)
            # At each recall the best precision at that recall or a higher one.
            best = np.maximum.accumulate(precision[::-1])[::-1]
            steps = np.diff(right, prepend=0) / self.objects[kind]
            precisions.append(float((best * steps).sum()))
        return float(np.mean(precisions))


TASKS = (
    Task(
        name="super_resolution",
        score="PSNR in dB",
        unit=("dB", 1),
        wanted=0.3,
        network=super_resolution,
        examples=image_pairs,
        targets=lambda images: images.astype(np.float32),
        losses="mean_absolute_error",
        metric="psnr",
        epochs=24,
        rate=1e-3,
    ),
    Task(
        name="segmentation",
        score="mean IoU",
        unit=("points", 100),
        wanted=1,
        network=segmentation,
        examples=masks,
        targets=lambda classes: classes,
        losses="sparse_categorical_crossentropy",
        metric="mean_iou",
        epochs=3,
        rate=3e-3,
    ),
    Task(
        name="detection",
        score="AP50",
        unit=("points", 100),
        wanted=1,
        network=detection,
        examples=objects,
        targets=cell_targets,
        losses={"classes": "sparse_categorical_crossentropy", "boxes": box_loss},
        metric=AP50(),
        epochs=3,
        rate=3e-3,
    ),
)
