"""Weights start as the official ones do."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from dreamer_torchrl.agents.agent import build_agent
from dreamer_torchrl.interop.official_names import links

PROPRIO = (Composite(vector=Unbounded((24,))), Bounded(-1, 1, (6,)))
VISION = (Composite(image=Bounded(0, 255, (64, 64, 3), dtype=torch.uint8)), OneHot(6))
CASES = {"size1m_proprio": PROPRIO, "size1m_vision": VISION}
CUT = 2 * 1.1368  # the normal is cut here, in multiples of the deviation that is left


def rows(case: str) -> dict[str, dict[str, str]]:
    with (Path(__file__).parents[1] / "golden" / "init_stats.csv").open() as file:
        return {row["param"]: row for row in csv.DictReader(file) if row["config"] == case}


@pytest.fixture(scope="module", params=CASES)
def started(request: pytest.FixtureRequest) -> tuple[dict[str, dict[str, str]], dict[str, Tensor]]:
    """Official statistics and our fresh parameters in the official layout."""
    torch.manual_seed(0)
    agent = build_agent(*CASES[request.param], "size1m")
    ours = {link.name: torch.from_numpy(link.to_official(link.parameter)) for link in links(agent)}
    official = {name: row for name, row in rows(request.param).items() if not name.startswith("slowval/")}
    return official, ours


Started = tuple[dict[str, dict[str, str]], dict[str, Tensor]]


def test_every_official_parameter_is_there_in_its_shape(started: Started) -> None:
    official, ours = started
    shapes = {name: "x".join(map(str, value.shape)) for name, value in ours.items()}
    assert shapes == {name: row["shape"] for name, row in official.items()}


def test_kernels_are_spread_as_the_official_ones(started: Started) -> None:
    official, ours = started
    for name, row in official.items():
        if not name.endswith("/kernel"):
            continue
        value = ours[name].double()
        std, expected = value.std(unbiased=False).item(), float(row["std"])
        # The deviation of n such numbers scatters by 0.585 / sqrt(n), theirs and ours alike: four times that may be.
        slack = 4 * 0.585 * math.sqrt(2 / value.numel())
        assert std == pytest.approx(expected, rel=slack), name
        scale = 0.0 if expected == 0 else 0.01 if name.startswith("pol/head/") else 1.0
        fan_in_std = scale * float(row["sqrt(1/fan_in)"])
        assert std == pytest.approx(fan_in_std, rel=slack), name
        assert value.abs().max() <= CUT * fan_in_std * (1 + 1e-6), name
        assert value.mean().abs() <= 4 * fan_in_std / math.sqrt(value.numel()), name
        if value.numel() > 1000:
            assert value.abs().max() >= 0.95 * CUT * fan_in_std, name


def test_biases_start_at_zero_and_norms_at_one(started: Started) -> None:
    for name, value in started[1].items():
        if name.endswith("/bias"):
            assert not value.any(), name
        if name.endswith("/scale"):
            assert (value == 1).all(), name
