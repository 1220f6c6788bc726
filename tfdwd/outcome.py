"""Records of what `tfdwd.compress` did and measured."""

import dataclasses

from tfdwd import reporting
from tfdwd.benchmarking import BenchmarkReport
from tfdwd.conversion import ExportReport
from tfdwd.decomposition import DecompositionReport
from tfdwd.evaluation import Evaluation
from tfdwd.plans import Plan
from tfdwd.records import Amount, Record


@dataclasses.dataclass(frozen=True)
class Tuning(Record):
    """What fine-tuning did.

    Attributes:
      before, after: {name: value} as `tfdwd.finetune` measured it on images that were held back.
      history: {name: its value of each epoch}.
    """

    before: dict[str, float]
    after: dict[str, float]
    history: dict[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Step(Record):
    """One step of the way, and how long it took when it was done."""

    name: str
    seconds: Amount


@dataclasses.dataclass(frozen=True)
class Compression(reporting.Report):
    """All that `compress` did and measured.

    Attributes:
      plan: what replaces which convolution.
      decomposition: what came of it.
      tuning: what fine-tuning did.
      original, student: the .tflite files, compared with Keras.
      original_score, student_score: of the files, on the test images.
      benchmark: the two files timed side by side.
      steps: in their order.
    """

    plan: Plan
    decomposition: DecompositionReport
    tuning: Tuning
    original: ExportReport
    student: ExportReport
    original_score: Evaluation
    student_score: Evaluation
    benchmark: BenchmarkReport
    steps: tuple[Step, ...]

    @property
    def speed_up(self) -> float:
        """The original's time over the student's."""
        return self.benchmark.timings[1].speed_up

    @property
    def lost(self) -> float:
        """The original's score less the student's, in the first metric and its unit.

        Above 0 where the student is worse, if the metric is the better the higher it is.
        """
        return self.original_score.scores[0].value - self.student_score.scores[0].value

    def _parts(self) -> reporting.Parts:
        original, student = self.benchmark.timings
        done = self.decomposition
        pairs = zip(self.original_score.scores, self.student_score.scores, strict=True)
        rows: list[tuple[str, ...]] = [
            (" ".join(filter(None, (one.output, one.title))), one.shown(), other.shown())
            for one, other in pairs
        ]
        rows += [
            ("ms", f"{original.median_ms:.3f}", f"{student.median_ms:.3f}"),
            ("KiB", f"{original.bytes / 1024:.1f}", f"{student.bytes / 1024:.1f}"),
            ("MACs", f"{done.macs_before:,}", f"{done.macs_after:,}"),
        ]
        took = ", ".join(f"{step.name} {step.seconds:.0f} s" for step in self.steps)
        return [
            (["", "original", "student"], rows),
            f"{self.speed_up:.2f} times as fast ({student.speed_up_low:.2f}.."
            f"{student.speed_up_high:.2f}) on {self.benchmark.device}; {self.student.path}",
            took,
        ]
