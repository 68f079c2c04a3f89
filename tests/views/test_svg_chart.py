"""Charts are read back as the XML that they are: where lines lie, what is written, that nothing can break them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer_torchrl.views.page_frame import PAGE_STYLE
from dreamer_torchrl.views.svg_chart import COLOURS, Line, line_chart, log_ticks, numbers, share_chart, ticks

ANY = st.floats(allow_nan=True, allow_infinity=True)
SIZED = st.floats(-1e9, 1e9, allow_subnormal=False)


def parsed(chart: str) -> ElementTree.Element:
    """The drawing; a chart that is not well-formed fails here."""
    return ElementTree.fromstring(chart)


def places(path: str) -> np.ndarray:
    """Points of a path of straight lines, ``[points, 2]``."""
    return np.array([tuple(map(float, point.split())) for point in path.strip("MZ").split("L")])


def of_class(chart: str, name: str) -> list[ElementTree.Element]:
    """All elements of a class."""
    return [element for element in parsed(chart).iter() if name in element.get("class", "").split()]


def grid(chart: str) -> dict[str, float]:
    """Height of each horizontal line by the number beside it."""
    heights = [float(element.get("d").split()[1].split("H")[0]) for element in of_class(chart, "grid")]
    names = [element.text for element in of_class(chart, "quiet") if element.get("text-anchor") == "end"]
    return dict(zip(names, heights, strict=False))


def test_a_line_lies_where_the_axes_say() -> None:
    """Through the numbers at the grid, from the left end to the right."""
    chart = line_chart("Return", [Line("training", [0, 100, 200, 400], [0, 20, 40, 10])], "steps", width=500)
    heights = grid(chart)
    (line,) = of_class(chart, "line")
    points = places(line.get("d"))
    assert np.allclose(points[:, 1], [heights["0"], heights["20"], heights["40"], heights["10"]], atol=0.06)
    assert points[-1, 0] == 488 and np.allclose(
        np.diff(points[:, 0]) / (488 - points[0, 0]), [0.25, 0.25, 0.5], atol=0.001
    )


def test_on_a_log_scale_a_factor_is_a_distance() -> None:
    """And values that have no logarithm are left out."""
    chart = line_chart("Loss", [Line("loss", [0, 1, 2, 3], [0.1, 1, 10, -5])], log=True)
    points = places(of_class(chart, "line")[0].get("d"))
    assert len(points) == 3 and np.allclose(np.diff(points[:, 1], 2), 0, atol=0.11)


def test_the_band_is_as_wide_as_the_spread() -> None:
    chart = line_chart("Return", [Line("evaluation", [0, 1], [10, 30], spread=[10, 20], marked=True)])
    heights = grid(chart)
    outline = places(of_class(chart, "band")[0].get("d"))
    assert np.allclose(outline[:, 1], [heights["0"], heights["10"], heights["50"], heights["20"]], atol=0.06)
    told = [element.text for element in parsed(chart).iter() if element.tag == "title"]
    assert told == ["Return", "evaluation at 0: 10 ± 10", "evaluation at 1: 30 ± 20"]


def test_a_band_may_go_further_below_than_above() -> None:
    chart = line_chart("Return", [Line("official", [0, 1], [40, 40], spread=[[40, 20], [10, 0]])])
    heights = grid(chart)
    outline = places(of_class(chart, "band")[0].get("d"))
    assert np.allclose(outline[:, 1], [heights[name] for name in ("0", "20", "40", "50")], atol=0.06)


def test_shares_are_stacked_to_the_whole() -> None:
    chart = share_chart("Time", [Line("learner", [0, 1], [0.75, 0.5]), Line("rest", [0, 1], [0.25, 0.5], 1)])
    lower, upper = (places(element.get("d"))[:, 1] for element in of_class(chart, "area"))
    heights = grid(chart)
    assert np.allclose(lower[:2], heights["0%"]) and np.allclose(upper[2:], heights["100%"])
    assert np.allclose(lower[2:], upper[:2][::-1]) and lower[2] == pytest.approx(heights["50%"])
    assert {"learner 62%", "rest 38%"} <= {element.text for element in of_class(chart, "quiet")}


def test_who_cannot_see_it_is_told() -> None:
    """A name, and what the lines do."""
    chart = parsed(line_chart("Return", [Line("training", [0, 5], [1, 7.5])], "steps", "points"))
    assert chart.get("role") == "img" and chart[0].tag == "title" and chart[0].text == "Return (points)"
    assert chart[1].tag == "desc" and "training: 1 at first, 7.5 at last" in chart[1].text


def test_names_are_text_whatever_they_hold() -> None:
    name = """<b> & "quotes" </svg>"""
    chart = line_chart(name, [Line(name, [0, 1], [0, 1], marked=True), Line("b", [0], [1])], name, name)
    texts = ["".join(element.itertext()) for element in parsed(chart).iter()]
    assert texts.count(name) >= 3


@pytest.mark.parametrize("log", [False, True])
@settings(max_examples=40)
@given(points=st.lists(st.tuples(SIZED, ANY, ANY), max_size=12))
def test_no_values_break_a_chart(log: bool, points: list[tuple[float, float, float]]) -> None:
    """Whatever was measured: well-formed, each number is one, all is inside the drawing, the grid is not dense."""
    x, y, spread = (
        (list(column) for column in zip(*sorted(points, key=lambda point: point[0]), strict=True))
        if points
        else ([],) * 3
    )
    chart = line_chart("Loss", [Line("a", x, y, spread=np.abs(spread) / 1e200)], "steps", log=log)
    parsed(chart)
    assert "nan" not in re.sub("<desc>.*</desc>", "", chart) and "inf" not in re.sub("<desc>.*</desc>", "", chart)
    assert len(of_class(chart, "grid")) <= 9
    for line in of_class(chart, "line"):
        at = places(line.get("d"))
        assert (at >= 0).all() and (at[:, 0] <= 360).all() and (at[:, 1] <= 220).all()


@given(low=SIZED, span=st.floats(1e-3, 1e9), most=st.integers(2, 12))
def test_ticks_are_round_and_evenly_spaced(low: float, span: float, most: int) -> None:
    high = low + span
    if span < 1e-6 * abs(low):
        return  # such axes are widened before
    marks, outer = ticks(low, high, most), ticks(low, high, most, around=True)
    assert len(marks) - 1 <= most and set(marks) <= set(outer) and len(outer) >= 2
    slack = 1e-6 * span
    assert (
        outer[0] <= low + slack
        and outer[-1] >= high - slack
        and all(low - slack <= mark <= high + slack for mark in marks)
    )
    step = outer[1] - outer[0]
    assert np.allclose(np.diff(outer), step, rtol=1e-3)
    assert min(abs(step / 10.0 ** math.floor(math.log10(step * 1.0001)) - factor) for factor in (1, 2, 5)) < 0.01
    assert len(set(numbers(outer))) == len(outer)


@given(low=st.floats(1e-9, 1e6), factor=st.floats(1.1, 1e9))
def test_log_ticks_lie_on_the_axis(low: float, factor: float) -> None:
    marks = log_ticks(low, low * factor)
    assert 1 <= len(marks) <= 8
    assert all(low * (1 - 1e-6) <= mark <= low * factor * (1 + 1e-6) for mark in marks)


def luminance(colour: str) -> float:
    """How bright the eye finds it, by the rule for web pages."""
    digits = colour[1:] if len(colour) == 7 else "".join(letter * 2 for letter in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_stands_out(scheme: int) -> None:
    """Three to one against what lies behind it, which is asked of drawings; text four and a half."""
    card = re.findall(r"--card:(#\w+)", PAGE_STYLE)[scheme]
    page = re.findall(r"--page:(#\w+)", PAGE_STYLE)[scheme]
    own = dict(re.findall(r"--line-(\d):(#\w+)", PAGE_STYLE)) if scheme else {}
    lines = [own.get(str(number), colour) for number, colour in enumerate(COLOURS)]
    texts = [re.findall(rf"--{name}:(#\w+)", PAGE_STYLE)[scheme] for name in ("ink", "quiet", "accent")]

    def contrast(one: str, other: str) -> float:
        dark, bright = sorted((luminance(one), luminance(other)))
        return (bright + 0.05) / (dark + 0.05)

    assert min(contrast(line, card) for line in lines) >= 3
    assert min(contrast(text, behind) for text in texts for behind in (card, page)) >= 4.5
