"""Recorded steps as an agent takes them: names, shapes, dtypes, one-hot classes and the range of actions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded

from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.collectors.stream_env import scaled_actions
from dreamer_torchrl.data.recorded import Recorded
from dreamer_torchrl.keys import NOT_OBSERVED
from dreamer_torchrl.limits import ConfigError
from dreamer_torchrl.modules.spaces import Discrete, Image, Space, key_name, spaces_from_spec

OF_ALL_STEPS = ("reward", "is_init", "terminated", "done")
BEYOND = 1e-3  # how far actions may be from -1 to 1 by rounding
OTHER = "give the env=... in which it was recorded, or env=none for the specs of the data itself"


def specs_of(recorded: Recorded) -> Specs:
    """Specs of the source, or derived from the values: whole numbers that are no image are floats, actions classes.

    The bounds of an action of floats are the least and the largest value of each of its entries, unless these are -1
    to 1 already.
    """
    if recorded.scaled and recorded.specs:
        return recorded.specs
    observed, actions = Composite(), Composite()
    for key, value in recorded.steps.exclude(*OF_ALL_STEPS).items(True, True):
        if key == "action" or key[0] == "action":
            actions[key] = _action_spec(key, value, recorded.scaled)
        else:
            observed[key] = _observation_spec(value)
    if recorded.specs:
        observed, actions = recorded.specs.observation_spec, recorded.specs.full_action_spec
    return Specs(observed, *scaled_actions(actions))


def fitted(recorded: Recorded, specs: Specs, source: str) -> TensorDictBase:
    """The steps ``[T]`` with what an agent of these specs reads and nothing else; `ConfigError` where they differ.

    Actions in the environment's own units are clipped to its bounds and scaled to -1 to 1. The only entry of an
    environment that the data lack is taken from their only other entry of its shape, whatever its name.
    """
    observed = spaces_from_spec(specs.observation_spec, "observation", exclude=NOT_OBSERVED)
    actions = spaces_from_spec(specs.full_action_spec, "action")
    steps, spaces = recorded.steps, observed | actions
    names = _names(steps, spaces, source)
    kept: dict[NestedKey, Tensor] = {}
    for key, space in spaces.items():
        kept[key] = value = _as_space(steps[names[key]], space, key_name(key), source)
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f"offline={source}: {key_name(key)!r} has values that are not finite: leave them out.")
        if key in specs.bounds and not recorded.scaled:
            low, high = specs.bounds[key]
            kept[key] = ((value - low) / (high - low) * 2 - 1).clamp(-1, 1)
        elif key in specs.bounds and not recorded.specs and value.abs().max() > 1 + BEYOND:  # those of a run may be
            told = f"{key_name(key)!r} of up to {value.abs().max():.4g}, actions in such data are -1 to 1"
            raise ConfigError(f"offline={source} has {told}: scale them by the bounds of the environment.")
    return TensorDict(kept | {key: steps[key] for key in OF_ALL_STEPS}, steps.batch_size)


def _names(steps: TensorDictBase, spaces: Mapping[NestedKey, Space], source: str) -> dict[NestedKey, NestedKey]:
    """Under which name the data have each key."""
    names = {key: key for key in spaces if key in steps.keys(True, True)}
    others = [key for key in steps.keys(True, True) if key not in {*names, *OF_ALL_STEPS}]
    missing = [key for key in spaces if key not in names]
    if len(missing) == 1:
        wanted = _squeezed(spaces[missing[0]].shape)
        alike = [key for key in others if _squeezed(steps[key].shape[1:]) == wanted]
        names |= dict(zip(missing, alike, strict=True)) if len(alike) == 1 else {}
    if lacking := [repr(key_name(key)) for key in spaces if key not in names]:
        there = ", ".join(f"{key_name(key)} {list(steps[key].shape[1:])}" for key in others) or "no others"
        raise ConfigError(f"offline={source} has no {' and no '.join(lacking)}; it has {there}: {OTHER}.")
    return names


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side != 1]


def _as_space(value: Tensor, space: Space, name: str, source: str) -> Tensor:
    """Values ``[T, ...]`` as those of a space; axes of one entry may differ, classes may come as indices."""
    found = f"offline={source}: {name!r} is {str(value.dtype).removeprefix('torch.')} {list(value.shape[1:])} per step"
    whole = not (value.is_floating_point() or value.dtype is torch.bool)
    if isinstance(space, Discrete) and space.one_hot and _squeezed(value.shape[1:]) != _squeezed(space.shape):
        count = len(space.classes)
        if not whole or value[0].numel() != count:
            raise ConfigError(
                f"{found}, and must be {count} of {space.classes} classes, one-hot or as indices: {OTHER}."
            )
        indices = value.reshape(len(value), count).long()
        if (indices < 0).any() or (indices >= torch.tensor(space.classes)).any():
            told = f"{int(indices.min())} to {int(indices.max())}, of {space.classes} classes"
            raise ConfigError(f"{found} with values from {told}: {OTHER}.")
        value = Discrete(space.classes, (count,)).flatten(indices)
    elif _squeezed(value.shape[1:]) != _squeezed(space.shape):
        raise ConfigError(f"{found}, and must be {list(space.shape)}: {OTHER}.")
    if isinstance(space, Image) and value.dtype is not torch.uint8:
        raise ConfigError(f"{found}, and must be uint8, 0 to 255: convert it.")
    value = value.reshape(len(value), *space.shape)
    if isinstance(space, Discrete) and space.one_hot:
        variables = space.flatten(value.to(space.dtype)).split(list(space.classes), -1)
        if any((one.sum(-1) != 1).any() for one in variables):
            raise ConfigError(f"{found}, and not one-hot: {OTHER}.")
    return value if isinstance(space, Image) else value.to(space.dtype)


def _observation_spec(value: Tensor) -> TensorSpec:
    shape = tuple(value.shape[1:])
    if value.dtype is torch.uint8 and len(shape) in (2, 3):
        return Bounded(0, 255, shape if len(shape) == 3 else (*shape, 1), dtype=torch.uint8)
    return Unbounded(shape or (1,))


def _action_spec(key: NestedKey, value: Tensor, scaled: bool) -> TensorSpec:
    flat = value.reshape(len(value), -1)
    if value.is_floating_point() and not (((flat == 0) | (flat == 1)).all() and (flat.sum(1) == 1).all()):
        low, high = (torch.full_like(value[0], -1), torch.ones_like(value[0])) if scaled else value.aminmax(dim=0)
        high = torch.where(high > low, high, low + 1)
        return Bounded(low, high, value.shape[1:] or (1,))
    if flat.shape[1] > 1:
        return OneHot(flat.shape[1], dtype=torch.bool)
    if value.dtype is torch.bool or value.is_floating_point():
        raise ConfigError(f"{key_name(key)!r} has one value only in all of the data: give the env=... of it.")
    return OneHot(int(flat.max()) + 1, dtype=torch.bool)
