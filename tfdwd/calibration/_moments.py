"""Second moments of the rows that a convolution reads and of those that it is to write."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tfdwd import workers


@dataclasses.dataclass(eq=False)
class Moments:
    """Sums from which means and covariances of (x, y) rows follow; they add up.

    Attributes:
      shift_x, shift_y: subtracted from all rows, so that large means cost no precision.
      count: number of rows.
      sum_x, sum_y: (d,), (n,) sums of shifted rows.
      sum_xx, sum_xy, sum_yy: (d, d), (d, n), (n, n) sums of products of shifted rows. All float64.
    """

    shift_x: np.ndarray
    shift_y: np.ndarray
    count: int
    sum_x: np.ndarray
    sum_y: np.ndarray
    sum_xx: np.ndarray
    sum_xy: np.ndarray
    sum_yy: np.ndarray

    @classmethod
    def empty(cls, shift_x: np.ndarray, shift_y: np.ndarray) -> "Moments":
        """No rows yet; the shifts (d,) and (n,) are best near the means."""
        d, n = len(shift_x), len(shift_y)
        zeros = (np.zeros(shape) for shape in (d, n, (d, d), (d, n), (n, n)))
        return cls(shift_x.astype(np.float64), shift_y.astype(np.float64), 0, *zeros)

    def add_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds rows x (rows, d) and y (rows, n), float32."""
        x, y = x - self.shift_x.astype(x.dtype), y - self.shift_y.astype(y.dtype)
        self.count += len(x)
        self.sum_x += x.sum(axis=0, dtype=np.float64)
        self.sum_y += y.sum(axis=0, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            xx, yy = x.T @ x, y.T @ y  # numpy calls the symmetric product, half the work
        if not (_in_float32(xx) and _in_float32(yy)):
            x, y = x.astype(np.float64), y.astype(np.float64)
            xx, yy = x.T @ x, y.T @ y
        self.sum_xx += xx
        self.sum_xy += x.T @ y
        self.sum_yy += yy

    def with_responses_changed(
        self, rows: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
    ) -> "Moments":
        """The moments after y became y + change in some of the rows (x, y) added before.

        Args:
          rows: (x, y, change) of these rows, in pieces.
        """
        total, sum_xy, sum_yy = np.zeros(len(self.sum_y)), self.sum_xy.copy(), self.sum_yy.copy()
        narrow = _in_float32(self.sum_xx) and _in_float32(self.sum_yy)
        for x, y, change in rows:
            if not narrow:
                x, y, change = (array.astype(np.float64) for array in (x, y, change))
            cross = change.T @ (y - self.shift_y.astype(y.dtype))
            total += change.sum(axis=0, dtype=np.float64)
            # Without a shifted copy of x: it is large, and unlike in a covariance nothing cancels.
            sum_xy += x.T @ change
            sum_yy += cross + cross.T + change.T @ change
        sum_xy -= np.outer(self.shift_x, total)
        return dataclasses.replace(self, sum_y=self.sum_y + total, sum_xy=sum_xy, sum_yy=sum_yy)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows, whichever machines they were collected on."""
        dx, dy = other.shift_x - self.shift_x, other.shift_y - self.shift_y
        moved_x, moved_y = other.sum_x + other.count * dx, other.sum_y + other.count * dy
        return Moments(
            shift_x=self.shift_x,
            shift_y=self.shift_y,
            count=self.count + other.count,
            sum_x=self.sum_x + moved_x,
            sum_y=self.sum_y + moved_y,
            sum_xx=self.sum_xx + other.sum_xx + np.outer(dx, other.sum_x) + np.outer(moved_x, dx),
            sum_xy=self.sum_xy + other.sum_xy + np.outer(dx, other.sum_y) + np.outer(moved_x, dy),
            sum_yy=self.sum_yy + other.sum_yy + np.outer(dy, other.sum_y) + np.outer(moved_y, dy),
        )

    def over_workers(self) -> "Moments":
        """The moments of the rows of all workers; the same on each."""
        if workers.count() == 1:
            return self
        # One shift for all, since only sums about the same point add up.
        shift_x, shift_y = workers.of_first([self.shift_x, self.shift_y])
        moved = Moments.empty(shift_x, shift_y) + self
        count, *sums = workers.add_up(
            [np.array(self.count), moved.sum_x, moved.sum_y, moved.sum_xx, moved.sum_xy,
             moved.sum_yy]
        )  # fmt: skip
        return Moments(shift_x, shift_y, int(count), *sums)

    @property
    def mean_x(self) -> np.ndarray:
        return self.shift_x + self.sum_x / self.count

    @property
    def mean_y(self) -> np.ndarray:
        return self.shift_y + self.sum_y / self.count

    @property
    def xx(self) -> np.ndarray:
        """Covariance of x, (d, d)."""
        covariance = self.sum_xx / self.count
        covariance -= np.outer(self.sum_x / self.count, self.sum_x / self.count)
        return covariance

    @property
    def xy(self) -> np.ndarray:
        """Covariance of x with y, (d, n)."""
        return self.sum_xy / self.count - np.outer(self.sum_x, self.sum_y) / self.count**2

    @property
    def yy(self) -> np.ndarray:
        """Covariance of y, (n, n)."""
        mean = self.sum_y / self.count
        return self.sum_yy / self.count - np.outer(mean, mean)


def _in_float32(squares: np.ndarray) -> bool:
    """Whether float32 holds sums of squares, the diagonal, without over- or underflow."""
    return bool(2.0**-80 < np.max(np.diagonal(squares), initial=0.0) < 2.0**110)
