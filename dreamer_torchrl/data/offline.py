"""The adapter from transitions in TorchRL's root/``next`` layout to steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor

from dreamer_torchrl.keys import LATENTS, NOT_OBSERVED, STREAM
from dreamer_torchrl.modules.spaces import key_name
from dreamer_torchrl.objectives.batch import check_keys

TRAJECTORY_KEYS = (("collector", "traj_ids"), "traj_ids", "episode")  # of TorchRL's collectors and data sets
MASK_KEYS = (("collector", "mask"), "mask")  # False where TorchRL's ``split_trajectories`` only filled up


def steps_from_transitions(
    transitions: TensorDictBase,
    observations: Sequence[NestedKey] | None = None,
    actions: Sequence[NestedKey] = ("action",),
    trajectory: NestedKey | None = None,
) -> TensorDictBase:
    """Turn transitions in TorchRL's layout into one stream of steps: what was seen on arrival, what was done then.

    An episode of n transitions becomes n + 1 steps ``[T]``; the reward of the first is 0. A trajectory without an end
    of its own (a cut data set, a full batch) is ``done``, not ``terminated``. Latents of the policy and ``stream`` are
    kept if they are there (else the stream is 0). On a last step they and the action repeat the step before.

    Args:
        transitions: ``[time]``, one trajectory after the other, or ``[..., time]``, whose rows are cut at their end,
            with ``reward`` and ``terminated`` (or ``done`` with ``truncated``) under ``next``.
        observations: keys to keep; those that stand both at the root and under ``next`` if left out.
        trajectory: a key whose value changes from one trajectory to the next; TorchRL's own are found without it.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> pairs = GymEnv("CartPole-v1").rollout(60, break_when_any_done=False)
        >>> steps = steps_from_transitions(pairs)
        >>> len(steps) - len(pairs) == int(pairs["next", "done"].sum()) + int(not pairs[-1]["next", "done"])
        True
    """
    if transitions.ndim == 0:
        raise ValueError("Transitions must be [time] or [..., time], these have no time axis: stack them in order.")
    keys = _shared_keys(transitions) if observations is None else list(observations)
    needed = [*keys, *actions, *(unravel_key(("next", key)) for key in (*keys, "reward"))]
    check_keys(transitions, needed, "The adapter")
    rows, last_in_row = _rows(transitions)
    arrival = rows["next"]
    terminated, done = _ends(arrival)  # [N] each
    cut = last_in_row | _other_trajectory_follows(rows, trajectory)
    _check_order(rows, keys, done | cut)
    last = done | cut  # [N], transitions after which the trajectory does not go on
    first = torch.cat([last.new_ones(1), last[:-1]])
    begin = torch.arange(len(last)) + last.cumsum(0) - last.long()  # [N], where each transition's root stands
    end = begin[last] + 1  # where the last observations stand

    def woven(now: Tensor, final: Tensor) -> Tensor:
        """What belongs to the root of each transition and what belongs to the ends of the last ones, in order."""
        steps = now.new_empty(len(begin) + len(end), *now.shape[1:])  # [T, ...]
        steps[begin], steps[end] = now, final
        return steps

    steps = {key: woven(rows[key], arrival[key][last].to(rows[key].dtype)) for key in keys}
    carried = [*actions, *(key for key in (*LATENTS, STREAM) if key in set(rows.keys()))]
    steps |= {key: woven(rows[key], rows[key][last]) for key in carried}
    steps.setdefault(STREAM, torch.zeros(len(begin) + len(end), 1, dtype=torch.long))
    received = arrival["reward"].reshape(len(last), 1).float()  # [N, 1]
    steps["reward"] = woven(torch.where(first.unsqueeze(1), 0.0, received.roll(1, 0)), received[last])
    never = torch.zeros_like(first)
    steps["is_init"] = woven(first, never[last]).unsqueeze(1)
    steps["terminated"] = woven(never, terminated[last]).unsqueeze(1)
    steps["done"] = woven(never, last[last]).unsqueeze(1)
    return TensorDict(steps, batch_size=[len(begin) + len(end)])


def _shared_keys(transitions: TensorDictBase) -> list[NestedKey]:
    both = set(transitions["next"].keys(True, True)) & set(transitions.exclude("next", "collector").keys(True, True))
    observations = both - {*NOT_OBSERVED, "step_count"}
    if not observations:
        raise KeyError("No key stands both at the root and under 'next': name the observations.")
    return sorted(observations, key=key_name)


def _rows(transitions: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
    """All transitions in one row ``[N]`` without those that only fill up, and which are the last of theirs."""
    number = torch.arange(transitions.numel()) // transitions.shape[-1]  # [N]
    flat = transitions.reshape(-1).cpu()
    for key in MASK_KEYS:
        mask = flat.get(key, None)
        if mask is not None and mask.shape == flat.shape:  # a mask of actions has more axes
            flat, number = flat[mask], number[mask]
            break
    if not len(number):
        raise ValueError("There are no transitions in it.")
    return flat, torch.cat([number[1:] != number[:-1], torch.ones(1, dtype=torch.bool)])


def _ends(arrival: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Where the task itself ended, and where the episode did for any reason, ``[N]`` each."""
    flags = {key: arrival[key].reshape(-1).bool() for key in ("terminated", "truncated", "done") if key in arrival}
    if "terminated" not in flags and not {"done", "truncated"} <= flags.keys():
        told = "Without ('next', 'terminated') nobody knows whether an episode ended or ran out of time: add it, or"
        raise KeyError(f"{told} give ('next', 'done') together with ('next', 'truncated').")
    if "terminated" not in flags:
        flags["terminated"] = flags["done"] & ~flags["truncated"]
    return flags["terminated"], torch.stack([*flags.values()]).any(0)


def _other_trajectory_follows(rows: TensorDictBase, trajectory: NestedKey | None) -> Tensor:
    """``[N]``; False for the last one."""
    if trajectory is not None:
        check_keys(rows, [trajectory], "The adapter")
    no = torch.zeros(len(rows), dtype=torch.bool)
    for key in TRAJECTORY_KEYS if trajectory is None else (trajectory,):
        if (number := rows.get(key, None)) is not None:
            flat = number.reshape(len(rows), -1)
            return torch.cat([(flat[1:] != flat[:-1]).any(1), no[:1]])
    return no


def _check_order(rows: TensorDictBase, keys: Sequence[NestedKey], last: Tensor) -> None:
    """Raise where a transition leads elsewhere than to the next one: a shuffled set would give episodes of nonsense."""
    for key in keys:
        here, there = rows[key][1:].flatten(1), rows["next"][key][:-1].flatten(1)
        same = (here == there) | ((here != here) & (there != there))  # NaN is like itself here
        wrong = ~same.all(1) & ~last[:-1]
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"Transition {row} leads to another {key_name(key)!r} than the one in which transition {row + 1} "
                "begins, and nothing says that a trajectory ends between them: give them in the order of time (not "
                "shuffled samples), and name the trajectories' key if there is one."
            )
