"""Images with the answers of the original and of the student."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from tfdwd import outputs
from tfdwd.report.elements import text

_SHOWN = 12  # images


def examples_of(
    images: np.ndarray, original: Sequence[np.ndarray], student: Sequence[np.ndarray]
) -> str:
    """Images with both networks' answers as HTML, the largest disagreements first.

    Args:
      images: (images, h, w, channels), of 1, 3 or 4 channels; others are not shown as pictures.
      original, student: outputs, one array (images, ...) for each.
    """
    apart = sum(_apart(a, b) for a, b in zip(original, student, strict=True))
    order = np.argsort(-apart, kind="stable")[:_SHOWN]
    found = []
    for number in order:
        answers = [
            f"<dt>{who}</dt><dd>{' '.join(_answer(array[number]) for array in arrays)}</dd>"
            for who, arrays in (("original", original), ("student", student))
        ]
        picture = _picture(images[number], f"image {number}")
        found.append(
            f"<figure>{picture}<figcaption><dl>{''.join(answers)}</dl></figcaption></figure>"
        )
    return f'<div class="examples">{"".join(found)}</div>'


def _apart(original: np.ndarray, student: np.ndarray) -> np.ndarray:
    """How far the answers for each image are apart: as a part of all images' mean."""
    pairs = (array.reshape(len(array), -1).astype(np.float64) for array in (original, student))
    apart = np.abs(np.subtract(*pairs)).mean(1)
    return apart / (apart.mean() or 1.0)


def _answer(output: np.ndarray) -> str:
    """What an output says of one image: a class, a map, a picture, or numbers."""
    of_classes = outputs.kind_of(output[None]) == outputs.PROBABILITIES
    if output.ndim == 1 and of_classes:
        return f"class {output.argmax()} ({output.max():.0%})"
    if output.ndim == 3 and of_classes:
        return _picture(_coloured(output.argmax(-1), output.shape[-1]), "the map of classes")
    if output.ndim == 3 and output.shape[-1] in (1, 3):
        return _picture(output, "the picture")
    return text(np.array2string(output.ravel()[:4], precision=3)) + (
        " ..." if output.size > 4 else ""
    )


def _coloured(classes: np.ndarray, count: int) -> np.ndarray:
    from matplotlib import colormaps

    return (255 * colormaps["turbo"](classes / max(1, count - 1))[..., :3]).astype(np.uint8)


def _picture(image: np.ndarray, about: str) -> str:
    """An image of 1, 3 or 4 channels as an element; of others what it is.

    Of -1..1, 0..1 or 0..255, with a margin of half: what a network leaves by less is cut off, so
    that two networks' pictures compare. Of any other range from its lowest to its highest value.
    """
    from matplotlib import image as files

    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        return f"<p>{text(about)}: {' x '.join(map(str, image.shape))}</p>"
    values = image.astype(np.float64)
    if image.dtype != np.uint8:
        low, high = values.min(), values.max()
        for bottom, top in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
            margin = (top - bottom) / 2
            if bottom - margin < low and high < top + margin:
                low, high = bottom, top
                break
        values = 255 * ((values - low) / ((high - low) or 1.0)).clip(0, 1)
    shown = np.repeat(values, 3, -1) if image.shape[-1] == 1 else values
    sheet = io.BytesIO()
    files.imsave(sheet, shown.round().astype(np.uint8), format="png")
    content = base64.b64encode(sheet.getvalue()).decode()
    return f'<img alt="{text(about)}" src="data:image/png;base64,{content}">'
