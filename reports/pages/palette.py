"""The report's colours and letters, each named once.

The page has them as CSS variables, which follow the reader's colour scheme. Charts and their legends are drawn in the
light ones, and where it is dark the page turns their lightness around (templates/page.css.j2). Every hue keeps a
contrast of 3:1 or more to its ground, and families differ in lightness or dash as well as in hue, for readers who
cannot tell the hues apart.
"""

import math

# name: (light, dark)
PALETTE = {
    "ground": ("#ffffff", "#14171a"),
    "panel": ("#f5f6f7", "#1d2125"),
    "ink": ("#1b1f23", "#e4e7ea"),
    "muted": ("#5c6670", "#9aa5b0"),
    "rule": ("#dfe3e7", "#31373d"),
    "good": ("#1a7f4b", "#4fc48a"),
    "warn": ("#9a6700", "#e0b040"),
    "noisy": ("#5e35b1", "#b9a3ea"),
    "bad": ("#b3261e", "#ff8a80"),
    "long": ("#00796b", "#4dc0b0"),
    "short": ("#c2185b", "#ff7fac"),
    "other-mode-0": ("#6d5f00", "#d9c34a"),
    "other-mode-1": ("#00639c", "#6cb8e6"),
    "other-mode-2": ("#a33b00", "#ffab7a"),
    "other-mode-3": ("#5b4b9a", "#b6a8f0"),
    "worker-0": ("#08306b", "#d3e6f7"),
    "worker-1": ("#1c5fa8", "#9ecae1"),
    "worker-2": ("#3182bd", "#6baed6"),
    "worker-3": ("#4f93ca", "#4a90cc"),
    "master": ("#7b3294", "#cfa3e6"),
    "load-0": ("#b85c00", "#f7a653"),
    "load-1": ("#8c4600", "#ffcc99"),
    "recorder": ("#6b6b6b", "#a8a8a8"),
}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'


def light(name: str) -> str:
    return PALETTE[name][0]


def mode_colour(mode: str) -> str:
    """The name of a mode's colour. Modes between long and short have a number of uploads per connection; neighbours in
    the usual series (1 2 5 10 20 ..., 1 2 4 8 16) get different ones."""
    if mode in ("long", "short"):
        return mode
    return f"other-mode-{round(3 * math.log10(max(2, int(mode.split()[0])))) % 4}"
