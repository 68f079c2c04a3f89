"""What others have reached: training curves of the official code, and final returns, by `curves.environment_of`.

The official curves count frames. Those of ``dmc_proprio`` come from an older configuration: size12m, train ratio 512,
actions repeated twice.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np


@dataclass(frozen=True)
class Reference:
    """A published curve: places in frames, median and range over the seeds of others, ``[points]`` each."""

    label: str
    x: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def until(self, end: float, frames_per_step: int = 1) -> Reference | None:
        """Up to ``end``, with places in steps of so many frames; none if it only starts there."""
        x = self.x / frames_per_step
        if end <= x[0]:
            return None
        places = np.unique([*x[x < end], min(end, x[-1])])
        columns = (np.interp(places, x, column) for column in (self.median, self.low, self.high))
        return Reference(self.label, places, *columns)


@dataclass(frozen=True)
class KnownResult:
    """A return that others have reached in the end."""

    mean: float
    deviation: float | None
    source: str
    hours: float | None

    @property
    def label(self) -> str:
        """In a legend.

        >>> KnownResult(455.0, 51.0, "Other", 2.5).label
        'Other: 455 ± 51 (2.5 h)'
        """
        deviation = "" if self.deviation is None else f" ± {self.deviation:g}"
        return f"{self.source}: {self.mean:g}{deviation}" + (f" ({self.hours:g} h)" if self.hours else "")


def official_curve(environment: str) -> Reference | None:
    """Training returns of the official code over frames; none where it has no curve.

    Example:
        >>> official_curve("dmc_proprio:cartpole_swingup").label
        'official code (action repeat 2)'
    """
    suite, _, task = environment.partition(":")
    names = (f"dmc_{task}", f"atari_{task}")
    rows = [
        row
        for row in _rows("official_curves.csv")
        if row["kind"] == "grid" and row["suite"] == suite and row["task"] in names
    ]
    if not rows:
        return None
    label = "official code (action repeat 2)" if suite == "dmc_proprio" else "official code"
    columns = (np.array([float(row[name]) for row in rows]) for name in ("step", "median", "min", "max"))
    return Reference(label, *columns)


def known_results(environment: str) -> list[KnownResult]:
    """Final returns that others report for an environment."""
    return [
        KnownResult(
            float(row["mean"]),
            float(row["deviation"]) if row["deviation"] else None,
            row["source"],
            float(row["hours"]) if row["hours"] else None,
        )
        for row in _rows("known_results.csv")
        if row["environment"] == environment
    ]


def _rows(name: str) -> Iterator[dict[str, str]]:
    with resources.files(__name__).joinpath(name).open(encoding="utf-8") as file:
        yield from csv.DictReader(file)
