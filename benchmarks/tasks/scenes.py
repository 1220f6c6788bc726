"""The data of the three tasks: CIFAR-10 images, and Fashion-MNIST articles pasted on them.

Three parts that share no image: "train"; "calibration", from which plans, ranges and fine-tuning
take their unlabelled images; and "test".

Data: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; Xiao et al. 2017,
"Fashion-MNIST", arXiv 1708.07747 (MIT licence), as Debian's package dataset-fashion-mnist has it.
"""

import functools
import pathlib
import sys

import numpy as np

from tfdwd import data

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import common

CLASSES = ("background", "top", "trousers", "dress", "footwear", "bag")
MOST = 3  # articles in a scene
_CLASS_OF = np.array([1, 2, 1, 3, 1, 4, 1, 4, 5, 4])  # by Fashion-MNIST's label
_LEAST_GREY = 24  # of 255; what is darker around an article shows the background


def small_images(part: str) -> np.ndarray:
    """Lossless CIFAR-10 images (count, 32, 32, 3) uint8: 3,000, 2,085 and 1,017."""
    (train, _), (test, _) = common.cifar10()
    return {"train": train[:3000], "calibration": train[3000:], "test": test}[part]


def scenes(
    part: str, count: int, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes of one to three articles on a photograph.

    Args:
      part: "train", "calibration" or "test".
      count: how many scenes.
      size: (height, width) in pixels.
      seed: of what goes where.

    Returns:
      images (count, height, width, 3) uint8; class of each pixel (count, height, width) uint8; and
      objects (count, 3, 5) float32: class, top, left, bottom, right in pixels, class 0 where there
      is none.
    """
    rng = np.random.default_rng((seed, ["train", "calibration", "test"].index(part)))
    photographs, articles, labels = _photographs(part), *_articles(part)
    images = np.empty((count, *size, 3), np.uint8)
    masks = np.zeros((count, *size), np.uint8)
    objects = np.zeros((count, MOST, 5), np.float32)
    for number in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        images[number] = _resized(photograph, max(size))[: size[0], : size[1]]
        for place in range(rng.integers(1, MOST + 1)):
            chosen = rng.integers(len(articles))
            found = _pasted(
                images[number], masks[number], objects[number, :, 1:],
                articles[chosen], _CLASS_OF[labels[chosen]], rng,
            )  # fmt: skip
            if found is not None:
                objects[number, place] = found
    return images, masks, objects


def _pasted(image, mask, others, article, kind, rng):
    """Pastes an article in a colour of its own where it covers no other; returns its record."""
    side = rng.integers(18, 31)
    picture = _resized(article, side)
    visible = picture > _LEAST_GREY
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture, visible = picture[inside], visible[inside]
    height, width = picture.shape
    colour = rng.uniform(0.35, 1, 3)
    for _ in range(10):
        top = rng.integers(0, image.shape[0] - height + 1)
        left = rng.integers(0, image.shape[1] - width + 1)
        box = np.array([top, left, top + height, left + width], np.float32)
        if overlap(box[None], others).max() < 0.05:
            there = np.s_[top : top + height, left : left + width]
            image[there][visible] = (picture[visible, None] * colour).astype(np.uint8)
            mask[there][visible] = kind
            return [kind, *box]
    return None


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union (boxes, others) of boxes (..., 4): top, left, bottom, right."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.maximum(high - low, 0).prod(-1)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (boxes, others)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square image, bilinear, as (side, side, ...) float32."""
    places = np.clip((np.arange(side) + 0.5) * len(image) / side - 0.5, 0, len(image) - 1)
    low = np.minimum(places.astype(int), len(image) - 2)
    part = (places - low).astype(np.float32)
    down = part.reshape(-1, *[1] * (image.ndim - 1))
    image = image[low] * (1 - down) + image[low + 1] * down
    across = part.reshape(1, -1, *[1] * (image.ndim - 2))
    return image[:, low] * (1 - across) + image[:, low + 1] * across


@functools.cache
def _photographs(part: str) -> np.ndarray:
    split = "validation" if part == "test" else "train"
    batches = data.evaluation(
        data.tfrecords(common.DATA / "cifar10", split), 500, size=32, resize=32
    )
    images = np.concatenate([images for images, _ in batches.as_numpy_iterator()])
    return {"train": images[:40000], "calibration": images[40000:], "test": images}[part]


@functools.cache
def _articles(part: str) -> tuple[np.ndarray, np.ndarray]:
    train, test = common.whole_fashion()
    images, labels = test if part == "test" else train
    chosen = {"train": np.s_[:50000], "calibration": np.s_[50000:], "test": np.s_[:]}[part]
    return images[chosen, ..., 0], labels[chosen]
