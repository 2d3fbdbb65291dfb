"""Whether a phase stayed the same: its second half beside its first.

A mean over a phase that drifts says nothing about any moment of it: a cache that fills, a disk that slows down, memory
that runs out. Rates are compared where the load asked for an even one; cost per upload everywhere.
"""

from collections.abc import Sequence

from reports.analysis.accounts import Account
from reports.analysis.evidence import Evidence, Span
from reports.summary import Drift

SHORTEST_S = 5.0  # of a phase whose halves can be compared


def drift(evidence: Evidence, own: Sequence[Span], start_s: float, end_s: float, busy: Account | None) -> Drift | None:
    """How a phase from `start_s` to `end_s` drifted, which has these lines of uploads.jsonl; `busy` is the machine's
    CPU. None when it is too short, or a half of it has no upload."""
    middle_s = (start_s + end_s) / 2
    first, second = _uploads(own, start_s, middle_s), _uploads(own, middle_s, end_s)
    if end_s - start_s < SHORTEST_S or not first or not second:
        return None
    cost = None
    if busy is not None and busy.t_s[0] <= start_s and busy.t_s[-1] >= end_s:
        before, after = busy.between(start_s, middle_s) / first, busy.between(middle_s, end_s) / second
        cost = after / before - 1 if before else None
    return Drift(rate=second / first - 1 if _is_even(evidence) else None, busy_core_us=cost)


def _uploads(own: Sequence[Span], start_s: float, end_s: float) -> float:
    """Uploads that were acknowledged in this time. A line that reaches beyond it counts in part."""
    total = 0.0
    for span in own:
        shared_s = min(span.end_s, end_s) - max(span.start_s, start_s)
        if shared_s > 0 and span.duration_s > 0:
            uploads = sum(name.count - name.late for name in span.line.names.values())
            total += uploads * shared_s / span.duration_s
    return total


def _is_even(evidence: Evidence) -> bool:
    """Whether the load asked for the same all the time."""
    options = evidence.run.load_options
    if evidence.run.model == "open":
        return options.get("arrival_profile") in ("constant", "poisson")
    return options.get("shape") == "none"
