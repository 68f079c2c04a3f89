"""The loss of DreamerPro: two shifted views of a sequence, and its latents, agree on prototypes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import full_precision
from dreamer_torchrl.modules.spaces import Image
from dreamer_torchrl.objectives.returns import Gather, whole

BALANCINGS = 3  # of assignments, by prototypes and by steps
SKIPPED = 1  # first steps of a sequence, whose latents have seen too little


def balanced(scores: Tensor, epsilon: float, gather: Gather = whole) -> Tensor:
    """Assign N steps to K prototypes, ``[N, K]`` with rows of sum 1, all prototypes alike (Sinkhorn-Knopp).

    They may be a part of the steps, of which `gather` then finds the others.
    """
    logs = scores / epsilon
    for _ in range(BALANCINGS):
        logs = logs - gather(logs.logsumexp(0, keepdim=True)).logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()


def assigned(vectors: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Logarithms of the shares ``[..., K]`` that prototypes of length 1 have in vectors ``[..., P]``."""
    return (F.normalize(vectors, dim=-1) @ prototypes.t() / temperature).log_softmax(-1)


def shifted(images: Tensor, shift: Tensor, most: int) -> Tensor:
    """Move images ``[N, T, h, w, c]`` by ``shift`` ``[N, 2]`` less ``most`` pixels; the borders are repeated."""
    height, width = images.shape[2:4]
    rows, columns = (
        (torch.arange(side, device=images.device) + by[:, None] - most).clamp(0, side - 1)
        for side, by in zip((height, width), shift.unbind(1), strict=True)
    )
    sequences = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sequences, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2, 4)


class PrototypeTerm(nn.Module):
    """DreamerPro's three losses, in place of a decoder or beside it.

    Each sequence is seen twice, with its images shifted. Encoder and RSSM assign the steps of both to prototypes as a
    slow copy of the encoder does, whose assignments are balanced: each view is compared with those of the other
    (``loss_swav``), the features with those of their own view (``loss_temporal``). ``loss_norm`` keeps vectors at
    length 1. An update that is not finite moves the slow copy all the same.

    Args:
        count, size: of prototypes and of the vectors that are compared.
        temperature, epsilon: of predicted and of balanced assignments.
        rate: of the slow copy's moving average.
        frozen: updates in which prototypes are not trained.
        shift: most pixels that images move.
        scale: of each of the three losses.
    """

    gather: Gather = staticmethod(whole)

    def __init__(
        self,
        count: int = 2500,
        size: int = 32,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        rate: float = 0.05,
        frozen: int = 10_000,
        shift: int = 3,
        scale: float = 1.0,
    ):
        super().__init__()
        self.count, self.size, self.temperature, self.epsilon = count, size, temperature, epsilon
        self.rate, self.frozen, self.shift, self.scale = rate, frozen, shift, scale

    def setup(self, learner: Any) -> None:
        agent, device = learner.agent, learner.device
        self.learner = learner
        self.prototypes = nn.Parameter(torch.randn(self.count, self.size, device=device))
        self.from_encoded = nn.Linear(agent.encoder.out_features, self.size, device=device)
        self.from_features = nn.Linear(agent.rssm.feature_size, self.size, device=device)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
        slow = copy.deepcopy(nn.ModuleList([agent.encoder, self.from_encoded])).requires_grad_(False)
        object.__setattr__(self, "slow", slow)  # no part of the module, whose parameters are trained

    def get_extra_state(self) -> dict[str, Tensor]:
        return self.slow.state_dict()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.slow.load_state_dict(state)

    def forward(self, data: TensorDictBase) -> TensorDict:
        self._follow()
        views = self._views(data)
        trained = torch.where(self.updates >= self.frozen, self.prototypes, self.prototypes.detach())
        prototypes = F.normalize(trained, dim=-1)
        with torch.no_grad():
            encoder, project = self.slow
            encoded = full_precision(encoder(*[views[key] for key in encoder.in_keys]))
            scores = (F.normalize(project(encoded), dim=-1) @ prototypes.t())[:, SKIPPED:]  # [2 B, T - 1, K]
            first, second = (balanced(half.flatten(0, 1), self.epsilon, self.gather) for half in scores.chunk(2))
        self.learner.networks.encoder(views)
        self.learner.networks.observe(views)
        encoded = self.from_encoded(full_precision(views["encoded_latents"]))  # [2 B, T, P]
        features = self.from_features(full_precision(views["features"]))
        predicted, latent = (
            assigned(x[:, SKIPPED:], prototypes, self.temperature).flatten(0, 1) for x in (encoded, features)
        )
        losses = {
            "loss_swav": -(torch.cat([second, first]) * predicted).sum(-1).mean(),
            "loss_temporal": -(torch.cat([first, second]) * latent).sum(-1).mean(),
            "loss_norm": sum((x.norm(dim=-1) - 1).square().mean() for x in (encoded, features)),
        }
        return TensorDict({name: self.scale * loss for name, loss in losses.items()})

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the slow copy, at first all the way, and give prototypes length 1."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))
        rate = torch.where(self.updates > 0, self.rate, 1.0)
        own = [*self.learner.agent.encoder.parameters(), *self.from_encoded.parameters()]
        for slow, now in zip(self.slow.parameters(), own, strict=True):
            slow.lerp_(now, rate)
        self.updates += 1

    def _views(self, data: TensorDictBase) -> TensorDictBase:
        """All sequences twice ``[2 B, T]``, with shifted images and noise of their own."""
        agent, generator = self.learner.agent, self.learner.generator
        inputs = data.select(*agent.encoder.in_keys, "previous_action", "is_init", "previous", strict=False)
        views = torch.cat([inputs, inputs])
        how = {"generator": generator, "device": self.learner.device}
        for key in agent.encoder.in_keys:
            if isinstance(space := agent.spaces[key], Image):
                by = torch.randint(2 * self.shift + 1, (len(views), 2), **how)
                moved = shifted(space.to_channels_last(views[key]), by, self.shift)
                views.set(key, space.from_channels_last(moved))
        return views.set(("noise", "posterior"), agent.rssm.latent.noise(*views.shape, **how))
