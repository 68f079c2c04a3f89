"""Specs survive a checkpoint and a card: the agent that is built from them is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, Unbounded

from dreamer_torchrl.checkpoint.files import copy_tree, read_tree, write_tree
from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.modules.spaces import spaces_from_spec

LEAVES = {
    "half_open": Bounded(torch.tensor([-4.8, -torch.inf]), torch.tensor([torch.inf, 0.1]), (2,)),
    "bounded": Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 9.0]), (2,)),
    "whole": Bounded(2, 7, (3,), dtype=torch.int32),
    "image": Bounded(0, 255, (64, 48, 3), dtype=torch.uint8),
    "unbounded": Unbounded((2, 3)),
    "one_hot": OneHot(5),
    "multi_one_hot": MultiOneHot([2, 3]),
    "categorical": Categorical(4),
    "multi_categorical": MultiCategorical([2, 3, 4]),
    "same_categorical": MultiCategorical([3, 3]),
    "binary": Binary(3),
    "flag": Categorical(2, shape=(1,), dtype=torch.bool),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_spec_comes_back(name: str, tmp_path: Path) -> None:
    leaf = LEAVES[name]
    spec = Composite({name: leaf, "inner": Composite({"same": leaf.clone()})})
    high = torch.ones(leaf.shape, dtype=leaf.dtype)
    bounds = {("inner", "same"): (torch.zeros_like(high), high)}
    file = write_tree(tmp_path / "specs.pt", copy_tree(Specs(spec, spec, bounds).to_tree(), "specs"))
    specs = Specs.from_tree(read_tree(tmp_path, file))
    listed = Specs.from_tree(json.loads(json.dumps(specs.to_tree(), allow_nan=False)))
    for found in (specs, listed):
        assert found.observation_spec == found.full_action_spec == spec
        assert found.bounds.keys() == bounds.keys() and found.bounds["inner", "same"][1].equal(high)
        assert spaces_from_spec(found.observation_spec, "x") == spaces_from_spec(spec, "x")
