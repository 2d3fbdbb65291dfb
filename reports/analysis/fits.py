"""What a connection costs, from a sweep of uploads per connection K: t(K) = t_request + t_connection / K.

Each connection is paid for once and shared by its K uploads, so the mean transaction (and its twin, busy core-µs an
upload) is a line over 1/K; connections without an end are at 1/K = 0. The line is only drawn where the data carry it:
at least 4 values of K, and phases in which nothing was at its limit, since a queue is not a cost of the connection.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from reports.summary import LineFit, PhaseSummary, SweepFit

LEAST_VALUES = 4
UNSATURATED = 0.8  # the busiest worker may use at most so much of a core

Measure = Callable[[PhaseSummary], float | None]


def sweep_fit(phases: Sequence[PhaseSummary]) -> SweepFit | None:
    """None where the data do not carry it."""
    usable = [phase for phase in phases if phase.measured and phase.uploads and not _is_saturated(phase)]
    if len({phase.uploads_per_connection for phase in usable}) < LEAST_VALUES:
        return None
    return SweepFit(
        uploads_per_connection=sorted({phase.uploads_per_connection for phase in usable}),
        transaction_us=_fit(usable, lambda phase: phase.transaction_mean_us),
        busy_core_us=_fit(usable, lambda phase: phase.busy_core_us_per_upload),
    )


def _is_saturated(phase: PhaseSummary) -> bool:
    return phase.limited or (phase.busiest_worker_share or 0) > UNSATURATED


def _fit(phases: Sequence[PhaseSummary], measure: Measure) -> LineFit | None:
    """Least squares over the means of each K, so that a K that was measured twice weighs as much as others."""
    values: dict[int, list[float]] = defaultdict(list)
    for phase in phases:
        if (value := measure(phase)) is not None:
            values[phase.uploads_per_connection].append(value)
    if len(values) < LEAST_VALUES:
        return None
    x = np.array([1 / k if k else 0.0 for k in values])
    y = np.array([np.mean(found) for found in values.values()])
    slope, intercept = np.polyfit(x, y, 1)
    scatter = float(((y - y.mean()) ** 2).sum())
    unexplained = float(((y - intercept - slope * x) ** 2).sum())
    return LineFit(
        request=float(intercept), connection=float(slope), r_squared=1 - unexplained / scatter if scatter else 1.0
    )
