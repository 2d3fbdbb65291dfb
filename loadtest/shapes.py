"""Stages of the closed model: how users come and go while the plan runs, as Locust's load shapes.

    ramp   users rise to the peak over the first 80 % of the plan, then hold
    step   25, 50, 75 and 100 % of the peak, for equal parts of the plan
    soak   users rise over the first 10 %, hold, and fall over the last 5 %

`users_at` is a pure function of time. The class around it answers Locust, which asks about once a second and then
starts or stops users of the one class there is. A shape never ends a run: the plan does.

Locust runs a shape class that it finds among the names of its locustfile. Ours is abstract to it and so never found,
however it is imported; `make` gives an instance to set as the environment's `shape_class`.
"""

import math
from collections.abc import Callable

from locust import LoadTestShape


def _ramp(progress: float) -> float:
    return progress / 0.8


def _step(progress: float) -> float:
    return (math.floor(progress * 4) + 1) / 4


def _soak(progress: float) -> float:
    return min(progress / 0.1, (1 - progress) / 0.05)


# The share of the peak at a share of the plan, and how fast the first changes at most, in peaks a plan; a jump is
# changes nothing else.
_SHARES: dict[str, Callable[[float], float]] = {"ramp": _ramp, "step": _step, "soak": _soak}
SHAPES = tuple(_SHARES)


def users_at(shape: str, peak: int, total_s: float, elapsed_s: float) -> int:
    """How many users there are after `elapsed_s` of a plan of `total_s`: at least 1, at most `peak`."""
    progress = min(max(elapsed_s / total_s, 0.0), 1.0)
    return min(max(math.ceil(peak * _SHARES[shape](progress)), 1), peak)
