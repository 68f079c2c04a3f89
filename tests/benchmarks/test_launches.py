"""The count of launches counts what a GPU would have to launch, and it does not grow unseen."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.benchmarks.conftest import Program


def test_only_what_computes_is_counted() -> None:
    """Views and memory cost nothing, an operation made of others what these cost, a list of tensors one launch."""
    launches = import_module("launches")
    x, weight = torch.ones(4, 3), torch.ones(3, 5)

    def body() -> Tensor:
        torch._foreach_mul_([x, weight], 2.0)
        return (x.view(12)[:6].reshape(2, 3) @ weight).t().add(1)

    found, waits = launches.counted(body, torch.device("cpu"))
    assert found == {"aten::_foreach_mul_": 1, "aten::mm": 1, "aten::add": 1} and waits == {}


BOUND = 4_400  # 4,156 when this was written
SMALL = "--nano --batch 2 --length 8".split()


def counts(program: Program, file: Path, *options: str) -> dict[str, int]:
    program("launches", *SMALL, "--device", "cpu", "--json", file, *options)
    return {row["part"]: row["launches"] for row in json.loads(file.read_text())["launches"]}


def test_an_update_as_it_is(program: Program, tmp_path: Path) -> None:
    found = counts(program, tmp_path / "plain.json", "--no-compile")
    assert 1000 < found["update"] < BOUND and 50 < found["acting"] < 150


@pytest.mark.slow
def test_compiling_leaves_less_than_half(program: Program, tmp_path: Path) -> None:
    """At eight steps; at 64 it is a third, since the loop that is compiled has a larger part."""
    plain = counts(program, tmp_path / "plain.json", "--no-compile")
    compiled = counts(program, tmp_path / "compiled.json")
    assert compiled["update"] < plain["update"] / 2
