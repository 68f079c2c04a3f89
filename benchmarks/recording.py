"""A recording of the official agent: its files, its configuration, and the noise that repeats what it sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.interop.official_names import keys_of
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.modules.distributions import unimix_probs

NOT_OBSERVED = ("reward", "is_first", "is_last", "is_terminal")


class Recording:
    """The files ``<case>_*`` in a folder, as described in its README.

    Args:
        folder: where the files are.
        case: their common prefix.
    """

    def __init__(self, folder: str | Path, case: str):
        self.folder, self.case = Path(folder), case
        if not self.file("config.json").is_file():
            cases = sorted(path.name.removesuffix("_config.json") for path in self.folder.glob("*_config.json"))
            there = f"there are {', '.join(cases)}" if cases else "there is no <case>_config.json at all"
            raise FileNotFoundError(f"No recording {case!r} in {self.folder}: {there}.")

    def file(self, suffix: str) -> Path:
        return self.folder / f"{self.case}_{suffix}"

    def load(self, part: str) -> dict[str, np.ndarray]:
        """The arrays of one file, such as ``step1``."""
        with np.load(self.file(f"{part}.npz"), allow_pickle=False) as arrays:
            return dict(arrays)

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads(self.file("config.json").read_text())

    @cached_property
    def action_keys(self) -> list[str]:
        return sorted(self.config["act"])

    @cached_property
    def observation_keys(self) -> dict[str, NestedKey]:
        """Official names and our keys, in the environment's order."""
        return keys_of(key for key in self.config["obs"] if key not in NOT_OBSERVED)

    @cached_property
    def horizon(self) -> int:
        return self.config["agent"]["imag_length"]

    def agent(self) -> Agent:
        """An agent of the recorded size, with weights of its own."""
        agent = self.config["agent"]
        rssm, encoder = agent["dyn"]["rssm"], agent["enc"]["simple"]
        _check_structure(agent)
        size = Size(
            belief=rssm["deter"],
            hidden=rssm["hidden"],
            stochastic=rssm["stoch"],
            classes=rssm["classes"],
            blocks=rssm["blocks"],
            depth=encoder["depth"],
            units=encoder["units"],
        )
        observations = {
            key: _observation_spec(name, *self.config["obs"][name], self._logits(name))
            for name, key in self.observation_keys.items()
        }
        actions = {key: _action_spec(**self.config["act"][key]) for key in self.action_keys}
        return Agent(Composite(observations), Composite(actions), size, unimix=rssm["unimix"])

    def _logits(self, name: str) -> int:
        """Number of logits that a discrete observation is decoded to, 0 for others."""
        return sum(self.config["param_shapes"].get(f"dec/vec/{name}/logits/bias", []))

    def hyperparameters(self) -> Hyperparameters:
        """The recorded configuration in our names."""
        agent = self.config["agent"]
        imagined, replayed, scales = agent["imag_loss"], agent["repl_loss"], agent["loss_scales"]
        normalizer, optimizer, rssm = agent["retnorm"], agent["opt"], agent["dyn"]["rssm"]
        return Hyperparameters(
            imagination_length=agent["imag_length"],
            horizon=agent["horizon"],
            discount_in_continue=agent["contdisc"],
            return_lambda=imagined["lam"],
            replay_lambda=replayed["lam"],
            slow_target=imagined["slowtar"],
            slow_scale=imagined["slowreg"],
            slow_rate=agent["slowvalue"]["rate"],
            entropy_scale=imagined["actent"],
            free_nats=rssm["free_nats"],
            reward_grad=agent["reward_grad"],
            replay_value_grad=agent["repval_grad"],
            return_percentiles=(normalizer["perclo"], normalizer["perchi"]),
            return_rate=normalizer["rate"],
            return_limit=normalizer["limit"],
            reconstruction_scale=scales["rec"],
            reward_scale=scales["rew"],
            continue_scale=scales["con"],
            dynamics_scale=scales["dyn"],
            representation_scale=scales["rep"],
            actor_scale=scales["policy"],
            value_scale=scales["value"],
            replay_value_scale=scales["repval"],
            learning_rate=optimizer["lr"],
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["eps"],
            clip=optimizer["agc"],
            warmup=optimizer["warmup"],
        )

    def batch(self, agent: Agent) -> TensorDict:
        """The recorded batch as steps ``[B, 1 + T]``: the carry that came before it is the step of context."""
        arrays = {key: torch.from_numpy(value) for key, value in self.load("batch").items()}
        steps = {key: arrays[f"obs/{name}"] for name, key in self.observation_keys.items()}
        steps["reward"] = arrays["obs/reward"].unsqueeze(-1)
        for ours, theirs in (("is_init", "is_first"), ("done", "is_last"), ("terminated", "is_terminal")):
            steps[ours] = arrays[f"obs/{theirs}"].unsqueeze(-1)
        steps = {key: torch.cat([torch.zeros_like(value[:, :1]), value], 1) for key, value in steps.items()}
        for key in self.action_keys:
            before = arrays[f"carry/prevact/{key}"].unsqueeze(1)
            steps[key] = torch.cat([before, arrays[f"act/{key}"]], 1)
        length = arrays["obs/reward"].shape[1]
        for ours, theirs in (("belief", "deter"), ("state", "stoch")):
            carry = arrays[f"carry/{theirs}"].unsqueeze(1)
            steps[ours] = torch.cat([carry, torch.zeros_like(carry).expand(-1, length, *carry.shape[2:])], 1)
        return TensorDict(steps, batch_size=steps["reward"].shape[:2])

    def noise(self, agent: Agent, step: dict[str, np.ndarray]) -> TensorDict:
        """Noise that makes our samplers draw what was drawn in a recorded train step."""
        tensors = {key: torch.from_numpy(value) for key, value in step.items()}
        unimix = self.config["agent"]["dyn"]["rssm"]["unimix"]
        posterior = uniform_for(unimix_probs(tensors["post/logit"], unimix), tensors["post/stoch"])
        batch = posterior.shape[:2]
        prior = uniform_for(unimix_probs(tensors["img/prior_logit"], unimix), tensors["img/stoch"][:, 1:])
        action = self.action_noise(agent, tensors, "img/act", "img/pol")[:, :-1]
        noise = {
            "posterior": torch.cat([torch.zeros_like(posterior[:, :1]), posterior], 1),
            "prior": _pad_context(prior.unflatten(0, batch)),
            "action": _pad_context(action.unflatten(0, batch)),
        }
        return TensorDict(noise, batch_size=[batch[0], batch[1] + 1])

    def action_noise(self, agent: Agent, tensors: dict[str, Tensor], action: str, policy: str) -> Tensor:
        """Noise that makes the actor draw the recorded actions ``<action>/<key>`` from ``<policy>/...``."""
        parts = []
        for key, space in agent.action_space.spaces.items():
            drawn, logits = part_of(tensors, action, key), part_of(tensors, policy, key, "/logits")
            if logits is None:
                mean, stddev = (part_of(tensors, policy, key, name) for name in ("/mean", "/stddev"))
                parts.append(space.flatten((drawn - mean) / stddev))
                continue
            one_hot = space.flatten(drawn).unflatten(-1, space.groups[0])  # [..., variables, classes]
            parts.append(uniform_for(logits.reshape(one_hot.shape).softmax(-1), one_hot))
        return torch.cat(parts, -1)


def part_of(tensors: Mapping[str, Tensor], prefix: str, key: str, name: str = "") -> Tensor | None:
    """``<prefix>/<key><name>``, or ``<prefix><name>`` as it is written where there is but one action key."""
    return tensors.get(f"{prefix}/{key}{name}", tensors.get(f"{prefix}{name}"))


def uniform_for(probs: Tensor, one_hot: Tensor) -> Tensor:
    """The uniform in the middle of a class's share, which the sampler turns into that class."""
    middle = probs.cumsum(-1) - probs / 2
    return (middle * one_hot).sum(-1) / probs.sum(-1)


def _pad_context(noise: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(noise[:, :1]), noise], 1)


def _observation_spec(key: str, dtype: str, shape: list[int], logits: int) -> TensorSpec:
    if dtype == "uint8" and len(shape) == 3:
        return Bounded(0, 255, shape, dtype=torch.uint8)
    if dtype.startswith("float"):
        return Unbounded(shape)
    if logits:
        return Categorical(logits // prod(shape), shape=shape)
    raise ValueError(f"Observation {key!r} of dtype {dtype} and shape {shape} is neither an image, floats nor classes.")


def _action_spec(dtype: str, shape: list[int], discrete: bool, classes: Any) -> TensorSpec:
    if not discrete:
        return Bounded(-1.0, 1.0, shape)
    count = int(np.asarray(classes).flatten()[0])
    return Categorical(count, shape=shape)


_NETS = {"act": "silu", "norm": "rms"}
_STRUCTURE = {
    "enc.simple": _NETS
    | {"mults": [2, 3, 4, 4], "layers": 3, "symlog": True, "outer": False, "kernel": 5, "strided": False},
    "dec.simple": _NETS
    | {"mults": [2, 3, 4, 4], "layers": 3, "outer": False, "kernel": 5, "bspace": 8, "strided": False},
    "dyn.rssm": _NETS | {"imglayers": 2, "obslayers": 1, "dynlayers": 1, "absolute": False},
    "rewhead": _NETS | {"layers": 1, "output": "symexp_twohot", "bins": 255},
    "conhead": _NETS | {"layers": 1, "output": "binary"},
    "policy": _NETS | {"layers": 3, "minstd": 0.1, "maxstd": 1.0},
    "value": _NETS | {"layers": 3, "output": "symexp_twohot", "bins": 255},
    "retnorm": {"impl": "perc", "debias": False},
    "valnorm": {"impl": "none"},
    "advnorm": {"impl": "none"},
    "slowvalue": {"every": 1},
    "opt": {"momentum": True, "wd": 0.0, "schedule": "const"},
    "": {
        "policy_dist_disc": "categorical",
        "policy_dist_cont": "bounded_normal",
        "imag_last": 0,
        "ac_grads": False,
        "repval_loss": True,
        "replay_context": 0,
    },
}
"""What our agent has built in and a recording may not have otherwise."""


def _check_structure(agent: dict[str, Any]) -> None:
    one_scale = {"repl_loss": {"slowreg": agent["imag_loss"]["slowreg"]}}
    for path, fixed in (_STRUCTURE | one_scale).items():
        section = agent
        for name in filter(None, path.split(".")):
            section = section[name]
        for key, value in fixed.items():
            if section[key] != value:
                name = f"{path}.{key}".lstrip(".")
                raise ValueError(f"The recording has {name}={section[key]}; this agent only knows {value}.")
