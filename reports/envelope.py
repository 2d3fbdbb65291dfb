"""A long curve in few points that hide nothing: the mean of each stretch, in a band from its lowest to its highest.

Dropping points would drop the spikes, which are what a reader looks for; averaging would flatten them; and a page with
every point of an hour would weigh more than its charting library.
"""

import numpy as np

from reports.evidence import Floats
from reports.timeline import Curve

MOST_POINTS = 600  # about as many as a chart has pixels on a phone, twice


def reduce(curve: Curve, band: tuple[Curve, Curve] | None) -> tuple[Curve, tuple[Curve, Curve] | None]:
    """The curve and its band, with at most MOST_POINTS points each. A short curve stays as it is."""
    if len(curve.t_s) <= MOST_POINTS:
        return curve, band
    low, high = band or (curve, curve)
    t_s = _stretches(curve.t_s).mean(axis=1)
    # A stretch with a break in it (NaN) is a break.
    mean, lowest, highest = (
        _stretches(curve.values).mean(axis=1),
        _stretches(low.values).min(axis=1),
        _stretches(high.values).max(axis=1),
    )
    return Curve(t_s, mean), (Curve(t_s, lowest), Curve(t_s, highest))


def _stretches(values: Floats) -> Floats:
    """One row for each point to draw. The last repeats its last value where it has fewer."""
    length = -(-len(values) // MOST_POINTS)
    rows = -(-len(values) // length)
    return np.pad(values, (0, rows * length - len(values)), mode="edge").reshape(rows, length)
