"""Specs of an environment as plain trees, so that a checkpoint's agent can be built without the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)

Bounds = Mapping[NestedKey, tuple[Tensor, Tensor]]
KINDS = {kind.__name__: kind for kind in (MultiOneHot, OneHot, MultiCategorical, Categorical, Binary)}


@dataclass(frozen=True)
class Specs:
    """What an agent is built from, with the names that environments have for it, and bounds of scaled actions.

    Example:
        >>> spec = Composite(x=Bounded(-1, 1, (2,)), inner=Composite(y=OneHot(3)))
        >>> again = Specs.from_tree(Specs(spec, Composite(action=Categorical(4)), {}).to_tree())
        >>> again.observation_spec == spec, again.full_action_spec["action"].n
        (True, 4)
    """

    observation_spec: Composite
    full_action_spec: Composite
    bounds: Bounds

    def to_tree(self) -> dict[str, Any]:
        """Dicts, lists, tensors and plain values."""
        return {
            "observation": _to_tree(self.observation_spec),
            "action": _to_tree(self.full_action_spec),
            "bounds": [[key, low, high] for key, (low, high) in self.bounds.items()],
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Specs:
        """Undo `to_tree`."""
        bounds = {key: (low, high) for key, low, high in tree["bounds"]}
        return cls(_from_tree(tree["observation"]), _from_tree(tree["action"]), bounds)


def _to_tree(spec: TensorSpec) -> dict[str, Any]:
    tree: dict[str, Any] = {"shape": list(spec.shape)}
    if isinstance(spec, Composite):
        return tree | {"kind": "Composite", "entries": {key: _to_tree(leaf) for key, leaf in spec.items()}}
    tree["dtype"] = str(spec.dtype).removeprefix("torch.")
    if isinstance(spec, Bounded):
        return tree | {"kind": "Bounded", "low": spec.space.low, "high": spec.space.high}
    if isinstance(spec, Unbounded):
        return tree | {"kind": "Unbounded"}
    kind = next((name for name, kind in KINDS.items() if isinstance(spec, kind)), None)
    if kind is None:
        raise TypeError(f"A {type(spec).__name__} cannot be saved in a checkpoint: give the environment another spec.")
    if kind == "MultiOneHot":
        return tree | {"kind": kind, "classes": [int(box.n) for box in spec.space]}
    return tree | {"kind": kind, "classes": spec.nvec if kind == "MultiCategorical" else int(spec.space.n)}


def _from_tree(tree: Mapping[str, Any]) -> TensorSpec:
    kind, shape = tree["kind"], torch.Size(tree["shape"])
    if kind == "Composite":
        return Composite({key: _from_tree(leaf) for key, leaf in tree["entries"].items()}, shape=shape)
    dtype = getattr(torch, tree["dtype"])
    if kind == "Bounded":
        return Bounded(low=tree["low"], high=tree["high"], shape=shape, dtype=dtype)
    if kind == "Unbounded":
        return Unbounded(shape=shape, dtype=dtype)
    return KINDS[kind](tree["classes"], shape=shape, dtype=dtype)
