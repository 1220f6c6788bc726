"""What /sys tells, on made-up folders: `board`, `pc` and others stand in for a Linux that has it.

The machines that these tests were written on have neither governors nor sensors. The files' names,
units and forms are those of Linux's documentation (admin-guide/pm/cpufreq, thermal/sysfs-api).
"""

from pathlib import Path

import pytest

from tfdwd.conditions import Conditions, Watch
from tfdwd.errors import Error

CPU = "sys/devices/system/cpu"
THERMAL = "sys/class/thermal"


class FakeMachine:
    """A folder that looks like / of a Linux machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, content: object) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")

    def cpu(self, number: int, governor: str, mhz: float, highest_mhz: float) -> None:
        for name, content in {
            "scaling_governor": governor,
            "scaling_cur_freq": int(1000 * mhz),  # kHz
            "cpuinfo_max_freq": int(1000 * highest_mhz),
        }.items():
            self.put(f"{CPU}/cpu{number}/cpufreq/{name}", content)

    def runs_on(self, number: int) -> None:
        # As proc(5) has it: pid, (command), state, 35 numbers, the processor, 13 more.
        fields = ["R", *["7"] * 35, str(number), *["7"] * 13]
        self.put("proc/thread-self/stat", f"123 (a name) of (two) words) {' '.join(fields)}")

    def sensor(self, number: int, kind: str, celsius: float) -> None:
        self.put(f"{THERMAL}/thermal_zone{number}/type", kind)
        self.put(f"{THERMAL}/thermal_zone{number}/temp", int(1000 * celsius))

    def cooling(self, number: int, kind: str, state: int) -> None:
        self.put(f"{THERMAL}/cooling_device{number}/type", kind)
        self.put(f"{THERMAL}/cooling_device{number}/cur_state", state)

    def throttle_counts(self, *counts: int) -> None:
        for number, count in enumerate(counts):
            self.put(f"{CPU}/cpu{number}/thermal_throttle/core_throttle_count", count)


@pytest.fixture
def machine(tmp_path):
    return FakeMachine(tmp_path)


@pytest.fixture
def board(machine):
    """Two small processors and two large ones, two sensors, a fan and a limit of the clock."""
    for number in range(4):
        machine.cpu(number, "schedutil", 1200, 1500 if number < 2 else 2000)
    machine.runs_on(1)
    machine.sensor(0, "cpu-thermal", 48.3)
    machine.sensor(1, "gpu-thermal", 47.0)
    machine.cooling(0, "pwm-fan", 2)
    machine.cooling(1, "cpufreq-cpu0", 0)
    return machine


def test_a_machine_that_tells_nothing(machine):
    watch = Watch(machine.root)
    watch.look()
    assert watch.conditions() is None


def test_this_machine_can_be_looked_at():
    watch = Watch(Path("/"))
    watch.look()
    conditions = watch.conditions()
    assert conditions is None or (conditions.samples == 1 and str(conditions))


def test_the_clock_is_that_of_the_processor_that_did_the_work(board):
    watch = Watch(board.root)
    for number, mhz in ((1, 1500), (2, 1600), (1, 1300), (3, 2000)):
        board.cpu(0, "schedutil", 600, 1500)  # idle
        board.cpu(number, "schedutil", mhz, 1500 if number < 2 else 2000)
        board.runs_on(number)
        watch.look()
    seen = watch.conditions()
    # 1300 of 1500 is more, as a share, than 1600 of 2000.
    assert (seen.mhz_low, seen.mhz_max) == (1600, 2000)
    assert seen.samples == 4 and seen.throttled == 0
    # 0.8 is not below 0.8.
    assert str(seen) == (
        "governor schedutil, clock at least 1600 of 2000 MHz, 48 °C before, 48 °C at the hottest "
        "(cpu-thermal), throttled in 0 of 4 samples"
    )


def test_the_hottest_sensor_at_any_time(board):
    watch = Watch(board.root)
    for cpu, gpu in ((50, 55.5), (61.24, 60), (49, 40)):
        board.sensor(0, "cpu-thermal", cpu)
        board.sensor(1, "gpu-thermal", gpu)
        watch.look()
    seen = watch.conditions()
    assert (seen.celsius_before, seen.celsius_peak, seen.sensor) == (48.3, 61.24, "cpu-thermal")


def test_broken_sensors_do_not_count(board):
    board.sensor(2, "off", -274)
    board.sensor(3, "broken", 1e6)
    board.put(f"{THERMAL}/thermal_zone4/temp", "no number")
    (board.root / THERMAL / "thermal_zone5/temp").mkdir(parents=True)  # cannot be read
    watch = Watch(board.root)
    watch.look()
    assert watch.conditions().celsius_peak == 48.3


def test_a_clock_that_is_held_down_for_heat(board):
    watch = Watch(board.root)
    for state in (0, 3, 1, 0):
        board.cooling(1, "cpufreq-cpu0", state)
        watch.look()
    seen = watch.conditions()
    assert seen.throttled == 2
    facts, verdict = str(seen).splitlines()
    assert facts.endswith(", throttled in 2 of 4 samples")
    assert verdict == "throttled: the clock was held down for heat; cool it and measure again"


def test_a_pc_counts_its_throttling(machine):
    machine.throttle_counts(5, 7)
    watch = Watch(machine.root)
    for counts in ((5, 7), (5, 8), (5, 8), (9, 8)):
        machine.throttle_counts(*counts)
        watch.look()
    assert watch.conditions() == Conditions(samples=4, throttled=2)


def test_a_low_clock_is_named_where_nothing_throttles(board):
    board.cpu(1, "powersave", 600, 1500)
    watch = Watch(board.root)
    watch.look()
    seen = watch.conditions()
    assert seen.governors == ("schedutil", "powersave")
    facts, verdict = str(seen).splitlines()
    assert facts.startswith("governor schedutil and powersave, clock at least 600 of 1500 MHz, ")
    assert verdict.startswith("the clock was not always high")


def test_a_governor_alone(machine):
    machine.put(f"{CPU}/cpu0/cpufreq/scaling_governor", "performance")
    watch = Watch(machine.root)
    watch.look()
    assert str(watch.conditions()) == "governor performance"


@pytest.mark.parametrize("clock", ["inf", "nan", "-5", "0", "fast"])
def test_a_clock_that_cannot_be_is_none(board, clock):
    board.put(f"{CPU}/cpu1/cpufreq/scaling_cur_freq", clock)
    watch = Watch(board.root)
    watch.look()
    assert watch.conditions().mhz_low is None


def test_conditions_check_themselves():
    with pytest.raises(Error, match=r"expected 0\.\.3 throttled samples, got 4"):
        Conditions(samples=3, throttled=4)
