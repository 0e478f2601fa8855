"""The library that draws the charts: plotly.js as its makers publish it for charts on two axes, a third of the whole.

It is the package ``plotly.js-cartesian-dist-min`` of the npm registry, of the version that plotly's Python package
makes figures for; a test holds the two together. Its licence (MIT) stands beside it.
"""

from functools import cache
from importlib.resources import files
from typing import Final

FILE: Final = "plotly-cartesian.min.js"
# What it can draw, by the names of plotly's traces.
TRACES: Final = frozenset(
    "bar box contour heatmap histogram histogram2d histogram2dcontour image pie scatter scatterternary violin".split()
)


@cache
def plotly_js() -> str:
    """Return the source of the library."""
    return files(__package__).joinpath(FILE).read_text(encoding="utf-8")
