"""A batch of recorded steps: checks, and the split into context and trained steps."""

from collections.abc import Iterable, Mapping

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch.nn import functional as F

from dreamer_torchrl.modules.actor import ActionSpace
from dreamer_torchrl.modules.spaces import Discrete, Space, key_name

TRANSITIONS = (
    "is TorchRL's root/next layout, where a reward belongs to the observation before it. These losses train on steps, "
    "where it belongs to the observation that it arrives with, so the rewards would be one step off. Convert "
    "transitions with dreamer_torchrl.data.offline.steps_from_transitions before they go to the replay."
)


def refuse_transitions(batch: TensorDictBase, reader: str) -> None:
    if "next" in batch.keys():  # noqa: SIM118
        raise ValueError(f"{reader} got a batch with 'next', which {TRANSITIONS}")


def check_keys(data: TensorDictBase, needed: Iterable[NestedKey], reader: str) -> None:
    """Raise a `KeyError` that names what is missing and what is there."""
    present = {unravel_key(key) for key in data.keys(True, True)}
    missing = [key_name(key) for key in needed if unravel_key(key) not in present]
    if missing:
        there = ", ".join(sorted(key_name(key) for key in present))
        remedy = "Add the entry, or name the one that stands for it with set_keys()."
        raise KeyError(f"{reader} needs {', '.join(missing)}, but the data holds {there}. {remedy}")


FLAG = Discrete((2,), (1,), torch.bool)  # the space of a boolean entry


def check_steps(batch: TensorDictBase, spaces: Mapping[NestedKey, Space]) -> None:
    """Raise an error that names the first entry which is missing, misshapen, no flag, not finite or no class.

    Values are looked at only in batches that lie in the CPU's memory: reading a GPU's would wait for it.
    """
    refuse_transitions(batch, "The learner")
    check_keys(batch, spaces, "The learner")
    if batch.ndim != 2:
        raise ValueError(f"A batch must be [B, context + T], this one is {list(batch.shape)}.")
    for key, space in spaces.items():
        value, name = batch.get(key), repr(key_name(key))
        if (shape := tuple(value.shape[2:])) != space.shape:
            found = f"has shape {list(shape)} per step, but the agent was built for {list(space.shape)}"
            raise ValueError(f"{name} {found}: build the agent from this environment's spec, or convert the data.")
        if space is FLAG and value.dtype is not torch.bool:  # "not" of a byte is another byte
            raise ValueError(f"{name} has dtype {value.dtype}, but is a flag: convert it to bool.")
        if value.device.type != "cpu":
            continue
        if value.is_floating_point():
            wrong, fault = ~value.isfinite(), "not finite"
        elif isinstance(space, Discrete) and not space.one_hot and space is not FLAG:
            classes = torch.tensor(space.classes).reshape(space.shape)
            wrong = (value.long() < space.low) | (value.long() >= space.low + classes)
            fault = f"outside its classes, of which it has {max(space.classes)},"
        else:
            continue
        if wrong.any():
            row, step = wrong.flatten(2).any(-1).nonzero()[0].tolist()
            remedy = "find where it comes from, one such value would spoil all weights."
            raise ValueError(f"{name} is {fault} at row {row}, step {step} of the batch: {remedy}")


def split_context(
    batch: TensorDictBase, context: int, action_space: ActionSpace, stored: tuple[NestedKey, NestedKey] | None
) -> TensorDictBase:
    """Give each step after the context the action of the step before and, with context, ``previous`` latents.

    ``stored`` are the keys of belief and state; without them sequences start from zeros.
    """
    if batch.ndim != 2 or batch.shape[1] < context + 2:
        wanted = f"[B, context + T] with context {context} and T of at least 2 steps in sequence"
        raise ValueError(f"A batch must be {wanted}, this one is {list(batch.shape)}.")
    steps = batch[:, context:].copy()
    action = action_space.flatten({key: batch.get(key) for key in action_space.keys})
    if context == 0:
        return steps.set("previous_action", F.pad(action[:, :-1], (0, 0, 1, 0)))  # [B, T, A]
    before = slice(context - 1, -1)
    if stored:
        steps["previous"] = dict(zip(("belief", "state"), (batch.get(key)[:, before] for key in stored), strict=True))
    return steps.set("previous_action", action[:, before])
