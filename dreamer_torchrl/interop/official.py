"""Checkpoints of the official JAX agent, read and written."""

from collections.abc import Mapping
from math import isqrt, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
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
    """A learner that continues where the official one stopped; to act, take ``load_official(...).agent.policy``.

    Target critic, return normalizer and optimizer state are restored if the checkpoint holds them.

    Args:
        source: a log directory, its ``ckpt`` folder, one checkpoint in it, an ``.npz`` file, or the arrays themselves.
        observation_spec, action_spec: where the shapes leave a choice: names of image keys, sides of images that are
            not square, several discrete variables.
        stochastic: number of state variables; 32 if left out and possible, else as many as classes.
        hyperparameters: the official ones if left out.

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
    places = _places(learner)
    trained = {name for name in arrays if name.split("/")[0] in ("enc", "dyn", "dec", "rew", "con", "pol", "val")}
    if unknown := trained - {name for name, _, _ in places}:
        raise ValueError(f"The checkpoint has arrays for which this agent has no place: {', '.join(sorted(unknown))}.")
    slow, optimizer = _holds(arrays, "slowval/"), _holds(arrays, "opt/state/")
    with torch.no_grad():
        for name, link, tensor in places:
            if name.startswith("slow") and not slow:  # then it starts as a copy of the fast one
                name = link.name
            if optimizer or not name.startswith("opt/"):
                tensor.copy_(link.from_official(_get(arrays, name)))
    if optimizer:
        for parameter in learner.agent.parameters():
            learner.optimizer.state[parameter]["step"].fill_(int(_get(arrays, "opt/step/value")))
    if _holds(arrays, "retnorm/"):
        learner.actor_loss.normalizer.low.fill_(float(_get(arrays, "retnorm/lo/value")))
        learner.actor_loss.normalizer.high.fill_(float(_get(arrays, "retnorm/hi/value")))


def save_official_params(learner: Learner, path: str | Path | None = None) -> dict[str, np.ndarray]:
    """Write everything that `load_official` reads as a plain mapping, and to an ``.npz`` file if ``path`` is given."""
    arrays = {name: link.to_official(tensor) for name, link, tensor in _places(learner)}
    arrays["retnorm/lo/value"] = learner.actor_loss.normalizer.low.cpu().numpy().copy()
    arrays["retnorm/hi/value"] = learner.actor_loss.normalizer.high.cpu().numpy().copy()
    steps = learner.optimizer.state[next(learner.agent.parameters())]["step"]
    arrays |= dict.fromkeys(COUNTERS, np.asarray(np.int32(steps.item())))
    if path is not None:
        np.savez(path, **arrays)
    return arrays


def _places(learner: Learner) -> list[tuple[str, Link, Tensor]]:
    """Official name, layout and tensor of each parameter, of the slow critic's, and of the optimizer's moments."""
    found, loss, state = links(learner.agent), learner.value_loss, learner.optimizer.state
    slow = {id(parameter): loss.target_value_params.get(key) for key, parameter in loss.value_params.items(True, True)}
    critic = [link for link in found if link.name.startswith("val/")]
    places = [(link.name, link, link.parameter) for link in found]
    places += [(f"slow{link.name}", link, slow[id(link.parameter)]) for link in critic]
    for prefix, moment in ((SECOND_MOMENT, "nu"), (MOMENTUM, "mu")):
        places += [(f"{prefix}/{link.name}", link, state[link.parameter][moment]) for link in found]
    return places


def size_from(arrays: Arrays, stochastic: int | None = None) -> Size:
    """Read the numbers of an agent off the shapes of its arrays."""
    belief, hidden = _get(arrays, "dyn/dynin0/kernel").shape
    blocks = _get(arrays, "dyn/dyngru/kernel").shape[0]
    state = _get(arrays, "dyn/priorlogit/bias").shape[0]
    units = _get(arrays, "val/mlp/linear0/kernel").shape[1]
    depth = arrays["enc/cnn0/kernel"].shape[-1] // 2 if "enc/cnn0/kernel" in arrays else 4
    if stochastic is None:
        stochastic = 32 if state % 32 == 0 else sqrt(state)
    if state % stochastic:  # 30 may be 5 x 6 or 6 x 5, and much else
        fault = f"Cannot tell how the {state} state logits split into variables of equal classes"
        raise ValueError(f"{fault}: give the official configuration's dyn.rssm.stoch as stochastic=.")
    return Size(belief, hidden, int(stochastic), int(state // stochastic), blocks, depth, units)


def _read(source: str | Path | Arrays) -> Arrays:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    content = load_arrays(path := find_checkpoint(path))
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
    leaves: dict[str, TensorSpec] = {}
    for name in (name for name in arrays if name.startswith(prefix)):
        shape = arrays[name].shape
        match name.removeprefix(prefix).split("/"):
            case [*key, "pred", "bias"]:
                leaves["/".join(key)] = Unbounded(shape)
            case [*key, "mean", "bias"]:
                leaves["/".join(key)] = Bounded(-1.0, 1.0, shape)
            case [*key, "logits", "bias"]:
                leaves["/".join(key)] = Categorical(shape[0], shape=())
    return leaves


def _holds(arrays: Arrays, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in arrays)


def _get(arrays: Arrays, name: str) -> np.ndarray:
    if name not in arrays:
        raise KeyError(f"The checkpoint has no array {name!r}: is it one of the official agent, and whole?")
    return np.asarray(arrays[name])
