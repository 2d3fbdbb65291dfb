"""A long curve in few points that hide nothing: the mean of each stretch, in a band from its lowest to its highest.

Dropping points would drop the spikes, which are what a reader looks for; averaging would flatten them; and a page with
every point of an hour would weigh more than its charting library.
"""

from collections.abc import Sequence

import numpy as np

from reports.analysis.evidence import Floats
from reports.analysis.timeline import Band, Curve

MOST_POINTS = 600  # about as many as a chart has pixels on a phone, twice


def reduce(curve: Curve, bands: Sequence[Band]) -> tuple[Curve, Sequence[Band]]:
    """The curve and its bands, with at most MOST_POINTS points each. A short curve stays as it is, a long one has a
    band in any case. A stretch with a break in it (NaN) is a break."""
    if len(curve.t_s) <= MOST_POINTS:
        return curve, bands
    t_s = _stretches(curve.t_s).mean(axis=1)
    reduced = [
        (Curve(t_s, _stretches(low.values).min(axis=1)), Curve(t_s, _stretches(high.values).max(axis=1)))
        for low, high in bands or [(curve, curve)]
    ]
    return Curve(t_s, _stretches(curve.values).mean(axis=1)), reduced


def _stretches(values: Floats) -> Floats:
    """One row for each point to draw. The last repeats its last value where it has fewer."""
    length = -(-len(values) // MOST_POINTS)
    rows = -(-len(values) // length)
    return np.pad(values, (0, rows * length - len(values)), mode="edge").reshape(rows, length)


def area(low: Curve, high: Curve) -> dict[str, Floats]:
    """The area between the two, as x, y1 and y2. bokeh draws one on over a break: it has no height at either side of
    one, so that there is nothing to see of it in between."""
    known = np.flatnonzero(~np.isnan(low.values + high.values))
    pieces = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    points = np.concatenate([np.pad(piece, 1, mode="edge") for piece in pieces])  # the ends of a piece twice
    lower, upper = low.values[points], high.values[points]
    ends = np.cumsum([len(piece) + 2 for piece in pieces])
    for end in (0, *ends[:-1], *(ends - 1)):
        upper[end] = lower[end]
    return {"x": low.t_s[points], "y1": lower, "y2": upper}
