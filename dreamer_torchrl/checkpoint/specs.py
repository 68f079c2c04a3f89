"""Specs of an environment as plain trees, so that a checkpoint's agent can be built without the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl import data
from torchrl.data import Composite, TensorSpec

KINDS = ("Composite", "Bounded", "Unbounded", "MultiOneHot", "OneHot", "MultiCategorical", "Categorical", "Binary")


@dataclass(frozen=True)
class Specs:
    """What an agent is built from, with the names that environments have for it, and bounds of scaled actions.

    Example:
        >>> spec = Composite(x=data.Bounded(-1, 1, (2,)), inner=Composite(y=data.OneHot(3)))
        >>> again = Specs.from_tree(Specs(spec, Composite(action=data.Categorical(4)), {}).to_tree())
        >>> again.observation_spec == spec, again.full_action_spec["action"].n
        (True, 4)
    """

    observation_spec: Composite
    full_action_spec: Composite
    bounds: Mapping[NestedKey, tuple[Tensor, Tensor]]

    def to_tree(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts, as JSON has them; a tensor whose values are all the same is a number."""
        tree = {"observation": _to_tree(self.observation_spec), "action": _to_tree(self.full_action_spec)}
        return _without_tensors(tree | {"bounds": [[key, low, high] for key, (low, high) in self.bounds.items()]})

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Specs:
        observation_spec, action_spec, bounds = _from_tree(tree["observation"]), _from_tree(tree["action"]), {}
        for key, *ends in tree["bounds"]:
            leaf = action_spec[key := tuple(key) if isinstance(key, list) else key]
            bounds[key] = tuple(_tensor(end, leaf.dtype, leaf.shape) for end in ends)
        return cls(observation_spec, action_spec, bounds)


def _to_tree(spec: TensorSpec) -> dict[str, Any]:
    kind = next((name for name in KINDS if isinstance(spec, getattr(data, name))), None)
    if kind is None:
        raise TypeError(f"A {type(spec).__name__} cannot be saved in a checkpoint: give the environment another spec.")
    tree: dict[str, Any] = {"kind": kind, "shape": list(spec.shape)}
    if kind == "Composite":
        return tree | {"entries": {key: _to_tree(leaf) for key, leaf in spec.items()}}
    tree["dtype"] = str(spec.dtype).removeprefix("torch.")
    if kind == "Bounded":
        return tree | {"low": spec.space.low, "high": spec.space.high}
    if kind == "MultiOneHot":
        return tree | {"classes": [int(box.n) for box in spec.space]}
    if kind == "MultiCategorical":
        return tree | {"classes": spec.nvec.tolist()}
    return tree if kind == "Unbounded" else tree | {"classes": int(spec.space.n)}


def _from_tree(tree: Mapping[str, Any]) -> TensorSpec:
    kind, shape = getattr(data, tree["kind"]), torch.Size(tree["shape"])
    if kind is Composite:
        return Composite({key: _from_tree(leaf) for key, leaf in tree["entries"].items()}, shape=shape)
    dtype = getattr(torch, tree["dtype"])
    bounds = {key: _tensor(tree[key], dtype, shape) for key in ("low", "high") if key in tree}
    classes = [tree["classes"]] if "classes" in tree else []
    return kind(*classes, **bounds, shape=shape, dtype=dtype)


def _without_tensors(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        one = tree.numel() > 0 and bool((tree == tree.flatten()[0]).all())
        return _without_tensors(tree.flatten()[0].item() if one else tree.tolist())
    if isinstance(tree, Mapping):
        return {key: _without_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_tensors(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not isfinite(tree) else tree  # JSON has no infinity


def _tensor(value: Any, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.array(value, str(dtype).removeprefix("torch."))).expand(shape).clone()
