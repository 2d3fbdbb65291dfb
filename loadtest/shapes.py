"""Stages of the closed model: how users come and go while the plan runs, as Locust's load shapes.

    ramp   users rise to the peak over the first 80 % of the plan, then hold
    step   25, 50, 75 and 100 % of the peak, for equal parts of the plan
    soak   users rise over the first 10 %, hold, and fall to 1 over the last 5 %

`users_at` is a pure function of time. The class around it answers Locust, which asks once a second and then starts or
stops users of the one class there is. A shape never ends a run: the plan does.

Locust runs a shape class that it finds among the names of its locustfile. Ours is abstract to it, so it is never found,
however it is imported; an instance is set as the environment's `shape_class`.
"""

import math
from itertools import pairwise

from locust import LoadTestShape
from locust.runners import STATE_INIT

# (share of the plan, share of the peak), with straight lines between; two points at one time are a jump.
_POINTS = {
    "ramp": ((0.0, 0.0), (0.8, 1.0), (1.0, 1.0)),
    "step": ((0.0, 0.25), (0.25, 0.25), (0.25, 0.5), (0.5, 0.5), (0.5, 0.75), (0.75, 0.75), (0.75, 1.0), (1.0, 1.0)),
    "soak": ((0.0, 0.0), (0.1, 1.0), (0.95, 1.0), (1.0, 0.0)),
}
SHAPES = tuple(_POINTS)

_TICK_S = 1.0  # between two questions of Locust


def users_at(shape: str, peak: int, total_s: float, elapsed_s: float) -> int:
    """How many users there are after `elapsed_s` of a plan of `total_s`: at least 1, at most `peak`."""
    users = math.ceil(peak * _share_at(shape, max(elapsed_s, 0.0) / total_s))
    return min(max(users, 1), peak)


def _share_at(shape: str, progress: float) -> float:
    points = _POINTS[shape]
    for (before, low), (after, high) in pairwise(points):
        if progress < after:
            return low + (high - low) * (progress - before) / (after - before)
    return points[-1][1]


def spawn_rate(shape: str, peak: int, total_s: float) -> float:
    """Users a second to start or stop: twice the most that the shape asks for, so that each tick's are there before the
    next; no more, since Locust warns of rates over 100; and one for all, since a new rate would start a new ramp."""
    pairs = pairwise(_POINTS[shape])
    share = max(abs(high - low) / max((after - before) * total_s, _TICK_S) for (before, low), (after, high) in pairs)
    return max(1.0, 2 * peak * share)


class Stages(LoadTestShape):
    """A shape (one of SHAPES) as Locust wants it, for a plan of `total_s` from the test's start on."""

    abstract = True
    use_common_options = True  # or Locust's page would hide the number of users from then on

    def __init__(self, shape: str, peak: int, total_s: float) -> None:
        super().__init__()
        self._shape, self._peak, self._total_s = shape, peak, total_s
        self._spawn_rate = spawn_rate(shape, peak, total_s)
        self._first: tuple[int, float] | None = None

    def tick(self) -> tuple[int, float]:
        """(users, users a second to start or stop), never None, which would end the test."""
        if self._first is not None and self.runner is not None and self.runner.state == STATE_INIT:
            return self._first  # the test still starts; another answer would start another one
        elapsed_s: float = self.get_run_time()
        now = users_at(self._shape, self._peak, self._total_s, elapsed_s), self._spawn_rate
        self._first = self._first or now
        return now
