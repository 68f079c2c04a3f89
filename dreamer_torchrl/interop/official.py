"""Checkpoints of the official JAX agent, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.interop.official_names import Link, keys_of, links
from dreamer_torchrl.interop.unpickle import find_checkpoint, load_arrays
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.learner import Learner

Arrays = Mapping[str, np.ndarray]

SECOND_MOMENT, MOMENTUM = "opt/state/1/1", "opt/state/2/1"
COUNTERS = ("opt/state/1/0", "opt/state/2/0", "opt/state/3/count", "opt/step/value", "slowval_count/value")


def load_official(
    source: str | Path | Arrays,
    observation_spec: Composite | None = None,
    action_spec: TensorSpec | None = None,
    stochastic: int | None = None,
    hyperparameters: Hyperparameters | None = None,
) -> Learner:
    """Build an agent from official weights, inside the learner that owns what else the checkpoint holds.

    The learner continues where the official one stopped: target critic, return normalizer and optimizer state are
    restored if they exist. To act, take ``load_official(...).agent.policy``.

    Args:
        source: a log directory, its ``ckpt`` folder, one checkpoint in it, an ``.npz`` file, or the arrays themselves.
        observation_spec, action_spec: where the shapes leave a choice: names of image keys, sides of images that are
            not square, several discrete variables.
        stochastic: number of state variables. Shapes tell only its product with the classes; left out it is the
            official 32 if that divides the product, else the product's square root.
        hyperparameters: of the learner, the official ones if left out.

    Example:
        >>> from torchrl.data import OneHot
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> agent = build_agent(Composite(vector=Unbounded((3,))), OneHot(2), "size1m")
        >>> arrays = save_official_params(Learner(agent))
        >>> torch.equal(load_official(arrays).agent.actor.mlp[0].linear.weight, agent.actor.mlp[0].linear.weight)
        True
    """
    arrays = _read(source)
    size = size_from(arrays, stochastic)
    observation_spec = observation_spec or _observation_spec(arrays)
    action_spec = action_spec or Composite(_leaves(arrays, "pol/head/"))
    learner = Learner(Agent(observation_spec, action_spec, size), hyperparameters or Hyperparameters.official())
    load_into(learner, arrays)
    return learner


def load_into(learner: Learner, arrays: Arrays) -> None:
    """Fill a learner with official arrays; normalizer and optimizer only if they are among them."""
    found = links(learner.agent)
    unknown = {name for name in arrays if _is_trained(name)} - {link.name for link in found}
    if unknown:
        raise ValueError(f"The checkpoint has arrays for which this agent has no place: {', '.join(sorted(unknown))}.")
    with torch.no_grad():
        for link in found:
            link.parameter.copy_(link.from_official(_get(arrays, link.name)))
        slow = "slow" if _holds(arrays, "slowval/") else ""  # without one, it starts as a copy of the fast one
        for link in _slow_links(learner):
            link.parameter.copy_(link.from_official(_get(arrays, f"{slow}{link.name}")))
        if _holds(arrays, "retnorm/"):
            learner.actor_loss.normalizer.low.fill_(float(_get(arrays, "retnorm/lo/value")))
            learner.actor_loss.normalizer.high.fill_(float(_get(arrays, "retnorm/hi/value")))
        if _holds(arrays, "opt/state/"):
            steps = int(_get(arrays, "opt/step/value"))
            for link in found:
                state = learner.optimizer.state[link.parameter]
                state["nu"].copy_(link.from_official(_get(arrays, f"{SECOND_MOMENT}/{link.name}")))
                state["mu"].copy_(link.from_official(_get(arrays, f"{MOMENTUM}/{link.name}")))
                state["step"].fill_(steps)


def save_official_params(learner: Learner, path: str | Path | None = None) -> dict[str, np.ndarray]:
    """Write everything that `load_official` reads as a plain mapping, and to an ``.npz`` file if ``path`` is given."""
    found, normalizer, optimizer = links(learner.agent), learner.actor_loss.normalizer, learner.optimizer
    arrays = {link.name: link.to_official(link.parameter) for link in found}
    arrays |= {f"slow{link.name}": link.to_official(link.parameter) for link in _slow_links(learner)}
    arrays["retnorm/lo/value"] = normalizer.low.cpu().numpy().copy()
    arrays["retnorm/hi/value"] = normalizer.high.cpu().numpy().copy()
    for link in found:
        state = optimizer.state[link.parameter]
        arrays[f"{SECOND_MOMENT}/{link.name}"] = link.to_official(state["nu"])
        arrays[f"{MOMENTUM}/{link.name}"] = link.to_official(state["mu"])
    steps = np.int32(optimizer.state[found[0].parameter]["step"].item())
    arrays |= dict.fromkeys(COUNTERS, np.asarray(steps))
    if path is not None:
        np.savez(path, **arrays)
    return arrays


def size_from(arrays: Arrays, stochastic: int | None = None) -> Size:
    """Read the numbers of an agent off the shapes of its arrays."""
    belief, hidden = _get(arrays, "dyn/dynin0/kernel").shape
    blocks = _get(arrays, "dyn/dyngru/kernel").shape[0]
    state = _get(arrays, "dyn/priorlogit/bias").shape[0]
    units = _get(arrays, "val/mlp/linear0/kernel").shape[1]
    depth = arrays["enc/cnn0/kernel"].shape[-1] // 2 if "enc/cnn0/kernel" in arrays else 4
    if stochastic is None:
        stochastic = 32 if state % 32 == 0 else isqrt(state)
        unclear = state % 32 and stochastic**2 != state  # 30 may be 5 x 6 or 6 x 5, and much else
    else:
        unclear = state % stochastic
    if unclear:
        raise ValueError(
            f"Cannot tell how the {state} state logits split into variables of equal classes: give the official "
            "configuration's dyn.rssm.stoch as stochastic=."
        )
    return Size(belief, hidden, stochastic, state // stochastic, blocks, depth, units)


def _read(source: str | Path | Arrays) -> Arrays:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    path = find_checkpoint(path)
    content = load_arrays(path)
    params = content.get("params") if isinstance(content, dict) else None
    if not isinstance(params, dict) or not all(isinstance(name, str) for name in params):
        raise ValueError(f"{path} holds no 'params': give the agent.pkl of an official checkpoint.")
    return params


def _observation_spec(arrays: Arrays) -> Composite:
    leaves = _leaves(arrays, "dec/vec/")
    if "dec/imgout/bias" in arrays:
        smallest = _get(arrays, "dec/sp0/bias").shape[0] // _get(arrays, "dec/spnorm/scale").shape[0]
        if isqrt(smallest) ** 2 != smallest:
            raise ValueError("The images of this checkpoint are not square: give observation_spec=.")
        side, channels = 16 * isqrt(smallest), arrays["dec/imgout/bias"].shape[0]
        leaves["image"] = Bounded(0, 255, (side, side, channels), dtype=torch.uint8)
    return Composite({key: leaves[name] for name, key in keys_of(leaves).items()})


def _leaves(arrays: Arrays, prefix: str) -> dict[str, TensorSpec]:
    """What heads whose names begin like this are for."""
    leaves: dict[str, TensorSpec] = {}
    for name, array in arrays.items():
        match name.removeprefix(prefix).split("/"):
            case [*key, "pred", "bias"] if name.startswith(prefix):
                leaves["/".join(key)] = Unbounded(array.shape)
            case [*key, "mean", "bias"] if name.startswith(prefix):
                leaves["/".join(key)] = Bounded(-1.0, 1.0, array.shape)
            case [*key, "logits", "bias"] if name.startswith(prefix):
                leaves["/".join(key)] = Categorical(array.shape[0], shape=())
    return leaves


def _slow_links(learner: Learner) -> list[Link]:
    loss = learner.value_loss
    fast = {id(parameter): key for key, parameter in loss.value_params.items(True, True)}
    return [
        replace(link, parameter=loss.target_value_params.get(fast[id(link.parameter)]))
        for link in links(learner.agent)
        if link.name.startswith("val/")
    ]


def _holds(arrays: Arrays, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in arrays)


def _is_trained(name: str) -> bool:
    return name.split("/")[0] in ("enc", "dyn", "dec", "rew", "con", "pol", "val")


def _get(arrays: Arrays, name: str) -> np.ndarray:
    if name not in arrays:
        raise KeyError(f"The checkpoint has no array {name!r}: is it one of the official agent, and whole?")
    return np.asarray(arrays[name])
