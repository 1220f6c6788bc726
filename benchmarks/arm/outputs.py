"""Runs .tflite files on images and keeps what they give, as LiteRT holds it.

    python outputs.py images.npy outputs.npz model.tflite...

Needs NumPy and LiteRT alone, so that parity.py runs it on x86 and on ARM.
"""

import pathlib
import sys

import numpy as np

from tfdwd import lite


def outputs(file: str, images: np.ndarray) -> np.ndarray:
    """What a model of one input and one output gives, image by image, not yet dequantised.

    Args:
      file: a .tflite file of batch 1.
      images: (images, height, width, channels), real values.

    Returns:
      (images, classes), int8 or float32, of the output's dtype.
    """
    model = lite.Model(file)
    [details] = model.interpreter.get_output_details()
    found = []
    for image in images:
        model.load([image[None].astype(np.float32)])
        model.invoke()
        found.append(model.interpreter.get_tensor(details["index"])[0].copy())
    return np.stack(found)


if __name__ == "__main__":
    images_file, results, *files = sys.argv[1:]
    given = np.load(images_file)
    np.savez(results, **{pathlib.Path(file).stem: outputs(file, given) for file in files})
