"""Line charts as inline SVG: round ticks, units, a legend; colours come from the page, so that it may be light or dark.

All points are drawn: `curves.thin` makes those few that a screen can show out of many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from dreamer_torchrl.views.figures import PALETTE, REFERENCE

COLOURS = (*PALETTE[:4], REFERENCE)
"""Those that stand out from a white page and from a black one; a line of a higher number starts again."""

STYLE = (
    ".chart{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}"
    ".chart text{fill:currentColor;font-variant-numeric:tabular-nums}"
    ".chart .quiet{opacity:.68}.chart .title{font-size:13px;font-weight:600}"
    ".chart .grid{stroke:currentColor;opacity:.13}.chart .axis{stroke:currentColor;opacity:.45}"
    ".chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}"
    ".chart .faint{stroke-width:1;opacity:.38}.chart .band{stroke:none;opacity:.2}.chart .area{opacity:.85}"
    + "".join(
        f".chart .line-{number}{{stroke:var(--line-{number},{colour})}}"
        f".chart .fill-{number}{{fill:var(--line-{number},{colour})}}"
        for number, colour in enumerate(COLOURS)
    )
)
"""What a page with charts needs once; it may set --line-0 and so on to colours of its own."""

MINUS = "\N{MINUS SIGN}"

TINY = 1e-100
"""What is nearer to zero is zero; so numbers can be drawn without a thought of overflow."""

LETTER, FIGURE = 6.4, 7.1
"""About as wide as letters and as figures of 11 pixels; a drawing cannot measure its text."""

MOST_MARKS = 60


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: in the legend.
        x: never goes back.
        y: one value for each ``x``; points that are not finite are left out.
        colour: its number in `COLOURS`.
        spread: draws a band so far above and below each point; ``[points]``, or ``[2, points]`` for below and above.
        marked: draws a dot at each point, with its numbers for who points at it.
        faint: what lies behind the other lines.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int = 0
    spread: Sequence[float] | np.ndarray | None = None
    marked: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """Where values lie: ``low`` at the pixel ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Pixels of values.

        Example:
            >>> Axis(0, 10, 0, 100).place([2.5]), Axis(1, 100, 0, 50, log=True).place([10])
            (array([25.]), array([25.]))
        """
        low, high, values = self.low, self.high, np.asarray(values, float)
        if self.log:
            low, high, values = math.log10(low), math.log10(high), np.log10(np.maximum(values, low))
        return self.start + (values - low) / (high - low) * (self.end - self.start)


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str = "",
    unit: str = "",
    width: int = 360,
    height: int = 220,
    log: bool = False,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Lines over one axis.

    Args:
        title: of the chart; it is its name for those who cannot see it, too.
        lines: later ones lie in front.
        x_label: what runs to the right.
        unit: of the values, beside the title.
        width, height: where text has 11 pixels; the page scales all of it.
        log: whether each step up is a factor; for values above zero.
        x_range: what the axis shows, as much as there is if left out.

    Returns:
        An ``<svg>`` element.

    Example:
        >>> chart = line_chart("Return", [Line("training", [0, 500, 1000], [10, 80, 200])], "steps")
        >>> chart[:20], "1,000" in chart
        ('<svg class="chart" v', True)
    """
    named, lines = len(lines) > 1, [finite(line, log) for line in lines]
    lines = [line for line in lines if len(line.x)]
    shown = lines if named else []
    top = 34 + 15 * len(legend_rows([line.name for line in shown], width))
    if not lines:
        return empty(title, width, height)
    low = min(float(np.min(line.y if log else line.y - line.spread[0])) for line in lines)
    high = max(float(np.max(line.y + line.spread[1])) for line in lines)
    if high - low <= max(1e-9 * abs(high), TINY):
        low, high = widened(low, high, log)
    y_ticks = log_ticks(low, high) if log else ticks(low, high, around=True)
    y = Axis(*((low, high) if log else (y_ticks[0], y_ticks[-1])), height - 34, top, log)
    y_names = numbers(y_ticks)
    left = 12 + max((FIGURE * (len(name) + name.count(MINUS) / 3) for name in y_names), default=0)
    x_low, x_high = x_range or (min(float(line.x[0]) for line in lines), max(float(line.x[-1]) for line in lines))
    x = Axis(*(widened(x_low, x_high) if x_low == x_high else (x_low, x_high)), left, width - 12)
    parts = [*legend(shown, width), *frame(x, y, y_ticks, y_names, x_label)]
    for line in lines:
        parts += drawn(line, x, y)
    told = "; ".join(f"{line.name}: {told_of(line)}" for line in lines) + f". {x_label} {x.low:,g} to {x.high:,g}."
    return svg(title, unit, told, parts, width, height)


def share_chart(
    title: str, lines: Sequence[Line], x_label: str = "", unit: str = "", width: int = 360, height: int = 220
) -> str:
    """Parts of a whole over one axis, stacked, the first one at the bottom.

    Args:
        title: of the chart.
        lines: with the same ``x`` all, no more points than pixels, and values that add up to 1.
        x_label: see `line_chart` for this and what follows.
        unit: beside the title.
        width, height: of the drawing.

    Returns:
        An ``<svg>`` element; the legend names the mean share of each part.
    """
    if not lines or not len(lines[0].x):
        return empty(title, width, height)
    steps = np.asarray(lines[0].x, float)
    shares = np.nan_to_num(np.array([line.y for line in lines], float))  # [parts, steps]
    means = shares.mean(1)
    if len(steps) == 1:  # one measurement is as wide as the chart
        steps, shares = np.array([steps[0] - 1, steps[0]]), shares.repeat(2, 1)
    lines = [replace(line, name=f"{line.name} {mean:.0%}") for line, mean in zip(lines, means, strict=True)]
    top = 34 + 15 * len(legend_rows([line.name for line in lines], width))
    x, y = Axis(steps[0], steps[-1], 12 + 4 * FIGURE, width - 12), Axis(0, 1, height - 34, top)
    edges = y.place(np.vstack([np.zeros_like(steps), shares.cumsum(0).clip(max=1)]))  # [1 + parts, steps]
    places = x.place(steps)
    parts = [*legend(lines, width), *frame(x, y, [0, 0.5, 1], ["0%", "50%", "100%"], x_label)]
    for line, below, above in zip(lines, edges, edges[1:], strict=False):
        outline = path(np.concatenate([places, places[::-1]]), np.concatenate([below, above[::-1]]))
        parts.append(f'<path class="area fill-{line.colour % len(COLOURS)}" d="{outline}Z"/>')
    return svg(title, unit, ", ".join(line.name for line in lines) + " on average.", parts, width, height)


def ticks(low: float, high: float, most: int = 5, around: bool = False) -> list[float]:
    """Round numbers between ``low`` and ``high``, at most so many steps; or those that have both between them.

    Example:
        >>> ticks(-158.2, 21), ticks(-158.2, 21, around=True)
        ([-150.0, -100.0, -50.0, 0.0], [-200.0, -150.0, -100.0, -50.0, 0.0, 50.0])
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if around:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") + 0.0 for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten from ``low`` to ``high``, with others between them where there is room.

    Example:
        >>> log_ticks(0.3, 40), log_ticks(1e-6, 1e6), log_ticks(1.5, 4)
        ([0.5, 1.0, 2.0, 5.0, 10.0, 20.0], [1e-06, 0.001, 1.0, 1000.0, 1000000.0], [1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        inside = [float(f"{factor}e{power}") for power in powers for factor in factors]
        inside = [value for value in inside if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return inside if len(inside) > 2 else ticks(low, high)
    stride = -(-len(inside) // most)
    return [value for value in inside if round(math.log10(value)) % stride == 0]


def numbers(values: Sequence[float]) -> list[str]:
    """Names of ticks: as many decimals as they need, one unit for all of them.

    Example:
        >>> numbers([0, 2500, 5000]), numbers([0, 50_000, 100_000]), numbers([-0.5, 0])
        (['0', '2,500', '5,000'], ['0', '50k', '100k'], ['\N{MINUS SIGN}0.5', '0'])
        >>> numbers([0.01, 1, 100]), numbers([0, 2e-7])
        (['0.01', '1', '100'], ['0', '2e\N{MINUS SIGN}7'])
    """
    largest = max(map(abs, values), default=0.0)
    units = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
    unit, letter = next(pair for pair in units if largest >= max(pair[0], 1e4) or pair[0] == 1)
    names = [number(value / unit) + (letter if value else "") for value in values]
    # So many digits that neighbours can be told apart.
    return names if len(set(names)) == len(names) else [f"{value:.12g}".replace("-", MINUS) for value in values]


def number(value: float) -> str:
    """A number as people read it, up to six digits.

    Example:
        >>> number(12345.678), number(0.25), number(-1.5e-7)
        ('12,345.7', '0.25', '\N{MINUS SIGN}1.5e\N{MINUS SIGN}7')
    """
    if value and (abs(value) < 1e-4 or abs(value) >= 1e12):
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        digits = 6 - len(str(int(abs(value)))) if abs(value) < 1e6 else 0
        text = f"{value:,.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", MINUS)


def finite(line: Line, log: bool) -> Line:
    """The points that can be drawn, as arrays."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    spread = np.nan_to_num(np.asarray(0.0 if line.spread is None else line.spread, float), posinf=0)
    spread = np.broadcast_to(spread, (2, len(y)))
    good = np.isfinite(x) & (abs(y) < 1 / TINY) & ((y > TINY) if log else True)
    return replace(line, x=x[good], y=y[good], spread=spread[:, good])


def widened(low: float, high: float, log: bool = False) -> tuple[float, float]:
    """Room around values that are all the same, or nearly so."""
    if log:
        return low / 2, high * 2
    room = 0.05 * abs(low) if abs(low) > TINY else 1.0
    return low - room, high + room


def told_of(line: Line) -> str:
    """A line in words."""
    return (
        f"{number(line.y[0])} at first, {number(line.y[-1])} at last, {number(line.y.min())} to {number(line.y.max())}"
    )


def frame(x: Axis, y: Axis, y_ticks: Sequence[float], y_names: Sequence[str], x_label: str) -> Iterator[str]:
    """Axes, grid and numbers."""
    for height, name in zip(y.place(y_ticks), y_names, strict=True):
        yield f'<path class="grid" d="M{x.start:g} {height:.1f}H{x.end:g}"/>'
        yield f'<text class="quiet" x="{x.start - 6:g}" y="{height + 4:.1f}" text-anchor="end">{name}</text>'
    yield f'<path class="axis" d="M{x.start:g} {y.start:g}H{x.end:g}"/>'
    x_ticks = ticks(x.low, x.high, most=max(2, int((x.end - x.start) // 58)))
    for place, name in zip(x.place(x_ticks), numbers(x_ticks), strict=True):
        place = min(place, x.end + 10 - FIGURE * len(name) / 2)  # the last name stays inside the picture
        yield f'<text class="quiet" x="{place:.1f}" y="{y.start + 14:g}" text-anchor="middle">{name}</text>'
    yield f'<text class="quiet" x="{x.end:g}" y="{y.start + 29:g}" text-anchor="end">{escape(x_label)}</text>'


def drawn(line: Line, x: Axis, y: Axis) -> Iterator[str]:
    """The line itself, with its band below and its dots above."""
    places, heights, colour = x.place(line.x), y.place(line.y), line.colour % len(COLOURS)
    if line.spread.any():
        below, above = y.place(line.y - line.spread[0]), y.place(line.y + line.spread[1])
        outline = path(np.concatenate([places, places[::-1]]), np.concatenate([below, above[::-1]]))
        yield f'<path class="band fill-{colour}" d="{outline}Z"/>'
    yield f'<path class="line line-{colour}{" faint" if line.faint else ""}" d="{path(places, heights)}"/>'
    if (line.marked and len(line.x) <= MOST_MARKS) or len(line.x) == 1:
        for index, place, height in zip(range(len(line.x)), places, heights, strict=True):
            told = f"{line.name} at {line.x[index]:,g}: {number(line.y[index])}"
            told += f" \N{PLUS-MINUS SIGN} {number(line.spread[1, index])}" if line.spread.any() else ""
            yield f'<circle class="fill-{colour}" cx="{place:.1f}" cy="{height:.1f}" r="3">'
            yield f"<title>{escape(told)}</title></circle>"


def path(places: np.ndarray, heights: np.ndarray) -> str:
    """Straight from point to point."""
    points = [f"{place:.1f} {height:.1f}" for place, height in zip(places.tolist(), heights.tolist(), strict=True)]
    return "M" + "L".join(points)


def legend_rows(names: Sequence[str], width: float) -> list[list[tuple[int, float]]]:
    """Which name stands where: rows of number and place."""
    rows: list[list[tuple[int, float]]] = []
    place = width
    for index, name in enumerate(names):
        wide = 34 + LETTER * len(name)
        if place + wide > width:
            rows.append([])
            place = 10.0
        rows[-1].append((index, place))
        place += wide
    return rows


def legend(lines: Sequence[Line], width: float) -> Iterator[str]:
    """A dash of each colour, and its name."""
    for row, entries in enumerate(legend_rows([line.name for line in lines], width)):
        height = 37 + 15 * row
        for index, place in entries:
            line = lines[index]
            look = f"line line-{line.colour % len(COLOURS)}{' faint' if line.faint else ''}"
            yield f'<path class="{look}" d="M{place:g} {height - 4}h14" style="stroke-width:3"/>'
            yield f'<text class="quiet" x="{place + 19:g}" y="{height}">{escape(line.name)}</text>'


def empty(title: str, width: float, height: float) -> str:
    """A chart before anything was measured."""
    note = f'<text class="quiet" x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle">nothing measured yet</text>'
    return svg(title, "", "Nothing was measured yet.", [note], width, height)


def svg(title: str, unit: str, description: str, parts: Sequence[str], width: float, height: float) -> str:
    """The element around the parts, with title and description for readers of screens."""
    head = f'<text class="title" x="10" y="17">{escape(title)}'
    head += f'<tspan class="quiet" dx="6" font-weight="400" font-size="11">{escape(unit)}</tspan>' if unit else ""
    named = escape(f"{title} ({unit})" if unit else title)
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img"><title>{named}</title>'
        f"<desc>{escape(description)}</desc>{head}</text>{''.join(parts)}</svg>"
    )
