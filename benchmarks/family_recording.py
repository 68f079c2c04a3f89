"""A recording of the official Dreamer V1 or V2 code: what both have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from family_names import Names, split_arrays
from recording import Recording, uniform_for
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.heads import ContinueHead, NormalHead
from dreamer_torchrl.modules.latents import CategoricalLatent, GaussianLatent
from dreamer_torchrl.modules.layers import Layers, dense_layers

Arrays = Mapping[str, np.ndarray]


class FamilyRecording(Recording):
    """The files ``<case>_*`` of a folder with the recordings of V1 and V2, as described in its README."""

    first: bool  # whether of V1

    @cached_property
    def settings(self) -> dict[str, Any]:
        return self.config["config"]

    @property
    def discrete(self) -> bool:
        return self.config["discrete"]

    @property
    def horizon(self) -> float:
        return 1 / (1 - self.settings["discount"])

    def parts(self, part: str) -> dict[str, np.ndarray]:
        """Arrays of a file of parameters or gradients, each of them that of one parameter of ours."""
        return split_arrays(self.load(part), self.discrete)

    def amount(self, tag: str) -> float:
        """Of the exploration noise in an acting step."""
        named = re.search(r"noise([.0-9]+)|eps([.0-9]+)", tag)
        if named:
            return float(named[1] or named[2])
        return self.settings["expl_amount"] if self.first and "eval" not in tag else 0.0

    def action_spec(self) -> OneHot | Bounded:
        size = self.config["A"]
        return OneHot(size, dtype=torch.float32) if self.discrete else Bounded(-1.0, 1.0, (size,))

    def names(self, agent: Agent, explorer: Plan2Explore | None = None) -> Names:
        return Names(agent, [name for name, _ in self.observations], self.first, explorer)

    def noise(self, learner: SeparateLearner, step: Arrays, behaviour: str) -> TensorDict:
        """Noise that makes our samplers draw what was drawn in a train step, in the dreams of one behaviour."""
        t = {key: torch.from_numpy(value) for key, value in step.items()}
        latent = learner.agent.rssm.latent
        posterior = noise_for(latent, self.parameters(t, "wm/post"), t["wm/post/stoch"])
        batch, length = posterior.shape[:2], learner.hyperparameters.imagination_length
        prior, action = (x.movedim(0, 1) for x in self.dreamt(learner, t, behaviour))  # [N, H, ...]
        if len(prior) < batch.numel():  # V1 does not dream from the last steps where an episode may end there
            rows = [x.unflatten(0, (batch[0], -1)) for x in (prior, action)]
            prior, action = (torch.cat([x, x[:, -1:]], 1).flatten(0, 1) for x in rows)
        noise = {"posterior": posterior, "prior": prior.unflatten(0, batch), "action": action.unflatten(0, batch)}
        padded = {key: torch.cat([torch.zeros_like(x[:, :1]), x], 1) for key, x in noise.items()}
        assert padded["prior"].shape[2] == length
        return TensorDict(padded, batch_size=[batch[0], batch[1] + 1])

    @staticmethod
    def parameters(t: Mapping[str, Tensor], prefix: str) -> Tensor:
        """Recorded logits, or means and deviations, as our latents hold them."""
        if (logits := t.get(f"{prefix}/logit")) is not None:
            return logits
        return torch.stack([t[f"{prefix}/mean"], t[f"{prefix}/std"]], -1)

    def dreamt(self, learner: SeparateLearner, t: Mapping[str, Tensor], behaviour: str) -> tuple[Tensor, Tensor]:
        """Noise of states and actions, ``[H, N, ...]`` each."""
        raise NotImplementedError


def steps(agent: Agent, arrays: Arrays, keys: list[str], carried: Arrays | None) -> TensorDict:
    """A recorded batch as steps ``[B, 1 + T]``; the first holds latents and the action that came before."""
    t = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    found = {key: t[key] for key in keys}
    found["reward"] = t["reward"].unsqueeze(-1)
    for ours, theirs in (("is_init", "is_first"), ("done", "is_last"), ("terminated", "is_terminal")):
        found[ours] = t[theirs].unsqueeze(-1)
    found = {key: torch.cat([torch.zeros_like(value[:, :1]), value], 1) for key, value in found.items()}
    found["action"] = torch.cat([t["action"], torch.zeros_like(t["action"][:, :1])], 1)
    batch, length = found["reward"].shape[:2]
    belief, state = agent.rssm.initial(batch)
    if carried is not None:
        belief = torch.from_numpy(carried["wm/last_state/deter"])
        state = as_drawn(torch.from_numpy(carried["wm/last_state/stoch"]), agent.rssm.latent.shape)
    for key, start in (("belief", belief), ("state", state)):
        rest = torch.zeros_like(start).unsqueeze(1).expand(-1, length - 1, *start.shape[1:])
        found[key] = torch.cat([start.unsqueeze(1), rest], 1)
    return TensorDict(found, batch_size=[batch, length])


def as_drawn(stoch: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Recorded states in the shape of our latents, ``[..., S, K]``."""
    return stoch if stoch.shape[-2:] == shape else stoch.unsqueeze(-1)


def noise_for(latent: CategoricalLatent | GaussianLatent, parameters: Tensor, stoch: Tensor) -> Tensor:
    """Noise ``[..., S]`` that makes a latent of these parameters draw ``stoch``."""
    if isinstance(latent, CategoricalLatent):
        return uniform_for(parameters.softmax(-1), stoch)
    mean, std = parameters.unbind(-1)
    return (stoch - mean) / std


def observation_spec(observations: list[tuple[str, list[int]]]) -> Composite:
    leaves = {}
    for name, shape in observations:
        leaves[name] = Bounded(0, 255, shape, dtype=torch.uint8) if len(shape) == 3 else Unbounded(shape)
    return Composite(leaves)


def kind_of(part: Mapping[str, Any]) -> Layers:
    known("norm", part["norm"], ("none", "layer"))
    return dense_layers(part["norm"] == "layer", part["act"])


def mlp(widths: list[int]) -> dict[str, int]:
    known("mlp_layers", len(set(widths)), (1,))
    return {"units": widths[0], "layers": len(widths)}


def head(kind: type[NormalHead | ContinueHead], part: Mapping[str, Any]) -> Callable[[int, int], NormalHead]:
    return lambda features, _: kind(features, part["units"], part["layers"], kind=kind_of(part))


def known(name: str, value: object, possible: tuple[object, ...]) -> None:
    if value not in possible:
        listed = " or ".join(map(str, possible))
        raise ValueError(f"The recording has {name}={value}; this agent only knows {listed}.")
