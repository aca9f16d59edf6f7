"""How pictures look: colours for light and dark, and the same for each cloud everywhere."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    name: str
    paper: str
    ink: str
    quiet: str  # axes, secondary words
    line: str  # grids, lanes
    lost: str
    clouds: dict[str, str]
    others: tuple[str, ...]  # of clouds that are none of the three, and of runs side by side

    def cloud(self, name: str | None) -> str:
        return self.clouds.get(name or "", self.others[0])


# the clouds' hues are apart for the colour-blind too (orange, blue, teal), and differ in lightness
LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2330",
    quiet="#667085",
    line="#e4e7ec",
    lost="#d92d20",
    clouds={"Google": "#2f6fde", "AWS": "#e08a00", "Azure": "#0f9d8a"},
    others=("#7a6fd0", "#2f6fde", "#e08a00", "#0f9d8a", "#c2417c", "#5c6675"),
)
DARK = Theme(
    name="dark",
    paper="#161b22",
    ink="#e6e9ee",
    quiet="#98a2b3",
    line="#2c333d",
    lost="#ff7a70",
    clouds={"Google": "#79a8ff", "AWS": "#f5b14c", "Azure": "#3fd0bb"},
    others=("#aaa2f5", "#79a8ff", "#f5b14c", "#3fd0bb", "#f08fb8", "#a8b3c2"),
)


def darkened(svg: bytes) -> bytes:
    """A picture drawn in LIGHT, in DARK: each colour is exchanged, which costs a hundredth of drawing it again."""
    pairs = {getattr(LIGHT, name): getattr(DARK, name) for name in ("paper", "ink", "quiet", "line", "lost")}
    pairs.update(zip(LIGHT.others, DARK.others, strict=True))
    pairs.update({color: DARK.clouds[name] for name, color in LIGHT.clouds.items()})
    return re.sub(rb"#[0-9a-f]{6}\b", lambda m: pairs.get(m[0].decode(), m[0].decode()).encode(), svg)


@contextmanager
def drawn_in(theme: Theme, *, small: bool) -> Iterator[None]:
    """What matplotlib draws within looks so. Nothing is taken for a formula: the words come from a store."""
    import matplotlib

    # of fonts that it looks for at its first start, of signs that they lack, and of pictures with little room
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    settings: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.size": 9.5 if small else 10,
        "text.color": theme.ink,
        "text.parse_math": False,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.quiet,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": theme.line,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.labelsize": "small",
        "ytick.labelsize": "small",
        "figure.facecolor": theme.paper,
        "legend.frameon": False,
        "legend.fontsize": "small",
        "svg.fonttype": "path",
        "svg.hashsalt": "baton",
        "hatch.linewidth": 1.2,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
