"""Observation and latents in, action and latents out."""

from collections.abc import Mapping

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, exploration_type

from dreamer_torchrl.keys import LATENTS, MASK
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.spaces import key_name
from dreamer_torchrl.ranges import part


class Policy(TensorDictModuleBase):
    """Observation and latents in, action and latents out, for any batch shape.

    Latents that are missing start at zero, and where ``is_init`` is set they are forgotten. With TorchRL's exploration
    type RANDOM latents and actions are drawn (from ``generator``, torch's own if it is None), else both are modes.
    The new latents take the place of the old ones and so stay with the observation that they saw.

    Classes whose flag in an environment's ``action_mask`` is False are never chosen.

    ``noise`` is the amount of exploration noise on drawn actions (`ActionSpace.explored`), which the latents remember.
    """

    def __init__(
        self,
        encoder: Encoder,
        rssm: RSSM,
        actor: Actor,
        generator: torch.Generator | None = None,
        noise: float = 0.0,
    ):
        super().__init__()
        self.noise = noise
        self.encoder, self.rssm, self.actor, self.generator = encoder, rssm, actor, generator
        self.in_keys: list[NestedKey] = [*encoder.in_keys, *actor.space.masks, "is_init", *LATENTS]
        self.out_keys: list[NestedKey] = [*actor.space.keys, *LATENTS]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write action, ``belief``, ``state`` and ``previous_action`` (the flat form of the action)."""
        with part("acting"):
            return self.write(tensordict, *self.act(self.read(tensordict)))

    def read(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        """What the policy needs to see, and the latents that are there, ``[N, ...]`` each."""
        if tensordict.get("is_init", None) is None:
            raise KeyError("The policy needs is_init to know where episodes start: append InitTracker() to the env.")
        seen = {key: rows_of(tensordict, key) for key in self.in_keys}
        for key in (key for key, value in seen.items() if value is None and key not in LATENTS):
            there = ", ".join(sorted(key_name(key) for key in tensordict.keys(True, True)))
            raise KeyError(f"The policy needs the observation {key_name(key)!r}, but the data holds {there}.")
        return {key: value for key, value in seen.items() if value is not None}

    def act(self, seen: Mapping[NestedKey, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What `read` gives to belief, state and flat action."""
        encoded = self.encoder(*(seen[key] for key in self.encoder.in_keys))
        mask = seen[MASK] if self.actor.space.masks else None
        belief, state, action = (seen.get(key, None) for key in LATENTS)
        zeros, none = self.rssm.initial(len(encoded))
        action = zeros.new_zeros(len(encoded), self.actor.space.size) if action is None else action
        latents = zeros if belief is None else belief, none if state is None else self.rssm.one_hot(state)
        return self.step(encoded, action, seen["is_init"], *latents, mask=mask)

    def write(self, tensordict: TensorDictBase, belief: Tensor, state: Tensor, action: Tensor) -> TensorDictBase:
        """Set the ``out_keys`` from what `act` gives."""
        shape = tensordict.batch_size
        tensordict.set("belief", belief.float().reshape(*shape, -1))
        tensordict.set("state", state.float().reshape(*shape, *state.shape[1:]))
        tensordict.set("previous_action", action.reshape(*shape, -1))
        for key, value in self.actor.space.restore(tensordict["previous_action"]).items():
            tensordict.set(key, value)
        return tensordict

    def step(
        self,
        encoded: Tensor,
        previous_action: Tensor,
        is_init: Tensor,
        belief: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        action_noise: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step on plain tensors ``[N, ...]`` to belief, state and flat action; noise may be given."""
        how = {"generator": self.generator, "device": belief.device}
        random = exploration_type() is ExplorationType.RANDOM
        if random:
            noise = self.rssm.latent.noise(len(belief), **how) if noise is None else noise
            action_noise = self.actor.space.noise(len(belief), **how) if action_noise is None else action_noise
        inputs = (encoded, previous_action, is_init, belief, state)
        if noise is not None and action_noise is not None:
            belief, state, action = self.rssm.act(self.actor, *inputs, noise, action_noise, mask=mask)
        else:
            belief, sampled, logits = self.rssm(*inputs, noise)
            state = self.rssm.latent.mode(logits) if noise is None else sampled
            policy = self.actor.distribution(self.actor(self.rssm.latent.features(belief, state)), mask)
            action = policy.mode if action_noise is None else policy.sample(action_noise)
        if random and self.noise:
            space = self.actor.space
            action = space.explored(action, self.noise, space.noise(len(action), **how), mask)
        return belief, state, action


def rows_of(tensordict: TensorDictBase, key: NestedKey) -> Tensor | None:
    """An entry with one batch dimension, ``[N, ...]``; None if it is not there."""
    value = tensordict.get(key, None)
    return value if value is None or tensordict.ndim == 1 else value.reshape(-1, *value.shape[tensordict.ndim :])
