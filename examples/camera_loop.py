"""Classifies what a camera sees, frame by frame, and tells how fast and how late. Without ROS.

    pip install numpy ai-edge-litert absl-py msgspec opencv-python-headless
    pip install --no-deps .                                           (in a clone of tfdwd)
    python examples/camera_loop.py --model=student.tflite --source=/dev/video0
    python examples/camera_loop.py --model=student.tflite --source=frames/

A folder's images are taken in the order of their names, as fast as they go. A camera runs until
Ctrl-C, or for --frames. Both end with the frames per second and, in milliseconds, how long a frame
took from the moment it was captured until its result was there, and in which part:

- capture: waiting for the camera's next frame, or reading the file.
- preprocessing: decoding, the square in the middle, resizing, quantising.
- inference: LiteRT alone.
- postprocessing: dequantising, the best class.

OpenCV decodes the files and drives the camera: one library for both, in wheels for arm64 and in
Debian (python3-opencv). It negotiates the format, maps the driver's buffers, decodes MJPEG and
YUYV, and hands over the driver's time stamps, so that a frame's age in the queue is in the result.
"""

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags

from tfdwd import files, lite, reporting
from tfdwd.conditions import Conditions, Watch
from tfdwd.errors import Error
from tfdwd.scripts import common

try:
    import cv2
except ImportError as error:
    raise SystemExit("camera_loop: pip install opencv-python-headless") from error

FLAGS = flags.FlagValues()
_MODEL = common.define_input(FLAGS, "model", "a .tflite classifier of images", required=True)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "a folder of frames, or a camera such as /dev/video0",
    required=True,
    flag_values=FLAGS,
)
_LABELS = common.define_input(FLAGS, "labels", "text file, the classes' names line by line")
_FRAMES = flags.DEFINE_integer(
    "frames", None, "stop after so many", lower_bound=1, flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer(
    "threads", 1, "threads that LiteRT may use", lower_bound=1, flag_values=FLAGS
)
_SCALE = flags.DEFINE_float(
    "scale",
    1.0,
    "what the network expects is pixel * scale + offset, the pixel 0..255, red first",
    flag_values=FLAGS,
)
_OFFSET = flags.DEFINE_float("offset", 0.0, "see --scale", flag_values=FLAGS)
_JSON = common.define_output(FLAGS, "json", "where to write the result as JSON")

_WARMUP = 3  # frames that are not counted: memory is touched first, clocks rise
# One buffer is filled while another is worked on. With one the camera would wait meanwhile; with
# more, frames would only grow old in the queue.
_BUFFERS = 2
_OLDEST_SECONDS = 5.0  # a time stamp further from now is of another clock
_PARTS = ("capture", "preprocessing", "inference", "postprocessing", "end to end")


@dataclass(frozen=True)
class Frame:
    """One frame, still encoded.

    Attributes:
      asked: when it was asked for, in seconds of `time.monotonic`.
      captured: when it was captured, by the same clock.
      got: when it was there.
      since: what was the moment of `captured`.
      decode: gives its pixels, (height, width, 3) uint8, blue first.
    """

    asked: float
    captured: float
    got: float
    since: str
    decode: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Milliseconds:
    """How long one part took: percentiles over the frames."""

    part: str
    median: float
    p90: float
    p99: float
    worst: float


@dataclass(frozen=True)
class LoopReport(reporting.Report):
    """What a loop took. Prints as a table.

    Attributes:
      frames: that were counted, without those of the warm-up.
      per_second: frames per second.
      parts: capture, preprocessing, inference, postprocessing and end to end, in this order.
      since: from which moment end to end counts.
      conditions: governor, clock and heat meanwhile, where Linux tells.
    """

    frames: int
    per_second: float
    parts: tuple[Milliseconds, ...]
    since: str
    conditions: Conditions | None = None

    def _parts(self) -> reporting.Parts:
        rows = [
            (p.part, *(f"{ms:.2f}" for ms in (p.median, p.p90, p.p99, p.worst))) for p in self.parts
        ]
        end = (
            f"{self.frames} frames, {self.per_second:.1f} per second; end to end since {self.since}"
        )
        seen = [] if self.conditions is None else [str(self.conditions)]
        return [(["ms", "median", "p90", "p99", "worst"], rows), end, *seen]


class Classifier:
    """A .tflite classifier and what is done before and after it.

    Args:
      model: path of the file.
      threads: that LiteRT may use.
      scale, offset: the network expects pixel * scale + offset.

    Raises:
      tfdwd.Error: no such model, or one of other inputs and outputs than one image, grey or RGB,
        and one row of scores.
    """

    def __init__(self, model: str, threads: int = 1, scale: float = 1.0, offset: float = 0.0):
        self._model = lite.Model(model, threads)
        shapes = [[t.shape for t in side] for side in (self._model.inputs, self._model.outputs)]
        match shapes:
            case [[(1, height, width, (1 | 3) as channels)], [(1, _)]]:
                self._size, self._channels = (width, height), channels
            case _:
                raise Error(
                    f"{model}: expected one input (1, height, width, 1 or 3) and one output "
                    f"(1, classes), got {shapes[0]} and {shapes[1]}"
                )
        self._scale, self._offset = np.float32(scale), np.float32(offset)

    def load(self, picture: np.ndarray) -> None:
        """Preprocesses a picture, (height, width, 3) uint8, blue first, into the input."""
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = picture[top : top + side, left : left + side]
        # Mixes all the pixels that become one, as antialiasing does; is linear where it grows.
        small = cv2.resize(square, self._size, interpolation=cv2.INTER_AREA)
        code = cv2.COLOR_BGR2GRAY if self._channels == 1 else cv2.COLOR_BGR2RGB
        pixels = cv2.cvtColor(small, code).reshape(1, *small.shape[:2], self._channels)
        self._model.load([pixels.astype(np.float32) * self._scale + self._offset])

    def invoke(self) -> None:
        """Runs LiteRT on what `load` left."""
        self._model.invoke()

    def best(self) -> tuple[int, float]:
        """The number of the best class and its score."""
        [details] = self._model.interpreter.get_output_details()
        scores = self._model.outputs[0].real(self._model.interpreter.get_tensor(details["index"]))
        number = int(scores[0].argmax())
        return number, float(scores[0, number])


def frames_of(source: str) -> Iterator[Frame]:
    """The frames of a folder or of a camera.

    Raises:
      tfdwd.Error: neither a folder nor a device, a file that is no picture, a camera that cannot
        be opened or that stops.
    """
    if os.path.isdir(source):
        return _frames_of_folder(Path(source))
    if os.path.exists(source) and stat.S_ISCHR(os.stat(source).st_mode):
        return _frames_of_camera(source)
    raise Error(f"{source}: expected a folder of frames, or a camera such as /dev/video0")


def _frames_of_folder(folder: Path) -> Iterator[Frame]:
    def decode() -> np.ndarray:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise Error(f"{file} is no picture that OpenCV reads")
        return picture

    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        asked = time.monotonic()
        content = file.read_bytes()
        yield Frame(asked, asked, time.monotonic(), "the file was opened", decode)


def _frames_of_camera(device: str) -> Iterator[Frame]:
    camera = cv2.VideoCapture(device, cv2.CAP_V4L2)

    def decode() -> np.ndarray:
        there, picture = camera.retrieve()
        if not there:
            raise Error(f"{device}: a frame could not be decoded")
        return picture

    try:
        if not camera.isOpened():
            raise Error(f"{device} cannot be opened as a camera: is it in use, or no video device?")
        camera.set(cv2.CAP_PROP_BUFFERSIZE, _BUFFERS)
        while True:
            asked = time.monotonic()
            if not camera.grab():
                raise Error(f"{device} gives no more frames")
            got = time.monotonic()
            # By the same clock. Some drivers give none, some a planned time that is yet to come.
            stamp = camera.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if abs(got - stamp) < _OLDEST_SECONDS:
                yield Frame(asked, min(stamp, got), got, "the driver's time stamp", decode)
            else:
                yield Frame(asked, got, got, "the frame was handed over", decode)
    finally:
        camera.release()


def loop(
    classifier: Classifier, frames: Iterator[Frame], act: Callable[[int, float], None]
) -> LoopReport:
    """Classifies frames until there are no more, or Ctrl-C.

    Args:
      classifier: what to run.
      frames: its input.
      act: gets each frame's class and score; a robot acts here. It is not timed.

    Returns:
      The times of all frames but the first three.

    Raises:
      tfdwd.Error: as `frames_of`; or there are too few frames.
    """
    seconds, ends = [], []
    since: dict[str, None] = {}  # in the order in which they came
    watch = Watch(Path("/"))
    with contextlib.suppress(KeyboardInterrupt):
        for frame in frames:
            start = time.monotonic()
            classifier.load(frame.decode())
            loaded = time.monotonic()
            classifier.invoke()
            inferred = time.monotonic()
            number, score = classifier.best()
            done = time.monotonic()
            parts = (frame.got - frame.asked, loaded - start, inferred - loaded, done - inferred)
            seconds.append((*parts, done - frame.captured))
            ends.append(done)
            since[frame.since] = None
            watch.look()
            act(number, score)
    if len(ends) <= _WARMUP:
        raise Error(f"expected more than {_WARMUP} frames, which only warm up, got {len(ends)}")
    table = 1000 * np.array(seconds[_WARMUP:])
    percentiles = np.percentile(table, (50, 90, 99, 100), axis=0).T
    return LoopReport(
        frames=len(table),
        per_second=len(table) / (ends[-1] - ends[_WARMUP - 1]),
        parts=tuple(
            Milliseconds(part, *map(float, row))
            for part, row in zip(_PARTS, percentiles, strict=True)
        ),
        since=" or ".join(since),
        conditions=watch.conditions(),
    )


def main() -> None:
    """Runs the loop, prints each change of the best class, then the times."""
    classifier = Classifier(_MODEL.value, _THREADS.value, _SCALE.value, _OFFSET.value)
    names = [] if _LABELS.value is None else files.read_text(_LABELS.value).splitlines()
    last = None

    def tell(number: int, score: float) -> None:
        nonlocal last
        if number != last:
            name = names[number] if number < len(names) else f"class {number}"
            print(f"{name} {score:.3f}", flush=True)
        last = number

    frames = itertools.islice(frames_of(_SOURCE.value), _FRAMES.value)
    report = loop(classifier, frames, tell)
    print(report)
    if _JSON.value is not None:
        files.write_whole(_JSON.value, report.to_json())


if __name__ == "__main__":
    common.run(main, FLAGS, __doc__)
