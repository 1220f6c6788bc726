"""Reads the clock, the governor and the temperature from /sys while something is timed.

Imports nothing heavy, so that `benchmarking` runs on a board without TensorFlow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfdwd import reporting
from tfdwd.errors import Error
from tfdwd.records import Amount, Count

_SLOW = 0.8  # share of its highest clock below which a processor is called slow
# Sensors that are off or broken report what no board survives.
_COLDEST, _HOTTEST = -40.0, 150.0  # degrees Celsius


@dataclass(frozen=True)
class Conditions(reporting.Report):
    """What the machine was like during a benchmark. Prints as one line, and one for what is wrong.

    Attributes:
      samples: how often it was looked at, each time after a sample of the benchmark.
      governors: what the governors of the processors are called, without repeats; empty where the
        system has none, as in most virtual machines.
      mhz_low: the lowest clock, in MHz, of the processor that did the work, where it was looked at;
        lowest as a share of `mhz_max`. None where the system does not tell.
      mhz_max: the highest clock of that processor.
      celsius_before: the hottest sensor before the benchmark, in degrees Celsius; None if there is
        no sensor.
      celsius_peak: the hottest sensor at any time.
      sensor: what that sensor is called.
      throttled: after how many of the samples the system had held the clock down for heat: a
        cooling device of the processor was at work, or a counter of throttling had moved. None
        where the system has neither.
    """

    samples: Count
    governors: tuple[str, ...] = ()
    mhz_low: Amount | None = None
    mhz_max: Amount | None = None
    celsius_before: float | None = None
    celsius_peak: float | None = None
    sensor: str = ""
    throttled: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.throttled is not None and self.throttled > self.samples:
            raise Error(f"expected 0..{self.samples} throttled samples, got {self.throttled}")

    def _parts(self) -> reporting.Parts:
        facts = []
        if self.governors:
            facts.append(f"governor {' and '.join(self.governors)}")
        if self.mhz_low is not None and self.mhz_max is not None:
            facts.append(f"clock at least {self.mhz_low:.0f} of {self.mhz_max:.0f} MHz")
        if self.celsius_peak is not None:
            facts.append(
                f"{self.celsius_before:.0f} °C before, {self.celsius_peak:.0f} °C at the hottest "
                f"({self.sensor})"
            )
        if self.throttled is not None:
            facts.append(f"throttled in {self.throttled} of {self.samples} samples")
        lines = [", ".join(facts)]
        if self.throttled:
            lines.append("throttled: the clock was held down for heat; cool it and measure again")
        elif self.mhz_low is not None and self.mhz_low < _SLOW * (self.mhz_max or 0):
            lines.append(
                "the clock was not always high: times are those of the governor as much as of the "
                "models; set it to performance, or keep to the ratios"
            )
        return lines


class Watch:
    """Looks at the machine now and then.

    Args:
      root: where /sys and /proc are.

    Example:
      >>> watch = Watch(Path("/"))
      >>> watch.look()
      >>> watch.conditions() is None or watch.conditions().samples
      1
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cpus = root / "sys/devices/system/cpu"
        self._before = max(self._temperatures(), default=None)
        self._peak = self._before
        self._counted = self._count()
        self._cooling = [
            device / "cur_state"
            for device in (root / "sys/class/thermal").glob("cooling_device*")
            # What they are called on ARM boards and phones, and on PCs.
            if any(word in _text(device / "type").lower() for word in ("cpu", "processor"))
        ]
        self._clocks: list[tuple[float, float, float]] = []
        self._samples = self._throttled = 0

    def look(self) -> None:
        """To be called right after the work, by the thread that did it."""
        self._samples += 1
        if clock := self._clock():
            self._clocks.append(clock)
        if hottest := max(self._temperatures(), default=None):
            self._peak = max(hottest, self._peak or hottest)
        counted = self._count()
        if counted != self._counted or any((_number(file) or 0) > 0 for file in self._cooling):
            self._throttled += 1
        self._counted = counted

    def conditions(self) -> Conditions | None:
        """What was seen; None where the system tells nothing."""
        files = sorted(self._cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"))
        governors = tuple(dict.fromkeys(filter(None, map(_text, files))))
        _, low, highest = min(self._clocks, default=(None, None, None))
        before, peak = self._before or self._peak, self._peak
        told = self._counted is not None or self._cooling
        if not (governors or low or peak or told):
            return None
        return Conditions(
            samples=self._samples,
            governors=governors,
            mhz_low=low,
            mhz_max=highest,
            celsius_before=before[0] if before else None,
            celsius_peak=peak[0] if peak else None,
            sensor=peak[1] if peak else "",
            throttled=self._throttled if told else None,
        )

    def _clock(self) -> tuple[float, float, float] | None:
        """(share, MHz, highest MHz) of the processor that this thread ran on last."""
        # After the command's name, which may hold spaces: field 39 is the processor.
        fields = _text(self._root / "proc/thread-self/stat").rpartition(")")[2].split()
        if len(fields) < 37:
            return None
        folder = self._cpus / f"cpu{fields[36]}" / "cpufreq"
        now, highest = (_number(folder / name) for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
        if now is None or highest is None or min(now, highest) <= 0:
            return None
        return now / highest, now / 1000, highest / 1000

    def _temperatures(self) -> Iterator[tuple[float, str]]:
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            millidegrees = _number(zone / "temp")
            if millidegrees is not None and _COLDEST < millidegrees / 1000 < _HOTTEST:
                yield millidegrees / 1000, _text(zone / "type")

    def _count(self) -> float | None:
        """How often the processors of a PC have throttled since they started, as they count it."""
        files = self._cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
        counts = [count for count in map(_number, files) if count is not None]
        return sum(counts) if counts else None


def _text(file: Path) -> str:
    """What a file says; nothing where there is none, or a sensor that does not answer."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> float | None:
    """A finite number that a file holds; None where it holds something else."""
    try:
        number = float(_text(file))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
