"""Losses that tie latents to the encoder's output, beside a decoder or in its place."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import full_precision, init_truncated_normal_
from dreamer_torchrl.objectives.returns import Gather, whole

EPS = 1e-8  # added to deviations


def barlow_loss(predicted: Tensor, encoded: Tensor, off_diagonal: float) -> Tensor:
    """How far the correlations of two batches of vectors ``[N, E]`` are from the identity matrix, a sum of squares."""
    ours, theirs = ((x - x.mean(0)) / (x.std(0) + EPS) for x in (predicted, encoded))
    correlations = ours.t() @ theirs / len(ours)  # [E, E]
    own = correlations.diagonal()
    return (own - 1).square().sum() + off_diagonal * (correlations.square().sum() - own.square().sum())


def infonce_loss(predicted: Tensor, encoded: Tensor) -> Tensor:
    """Cross entropy of finding one's own among N vectors ``[N, E]`` by scalar products, without a temperature."""
    labels = torch.arange(len(predicted), device=predicted.device)
    return F.cross_entropy(predicted @ encoded.t(), labels)  # which subtracts the largest of each row


class PredictionTerm(nn.Module):
    """A loss between the encoder's output and what a matrix predicts from ``features``, as a learner's extra loss.

    The encoder's output has no gradient: the encoder learns from what the features need. A subclass gives ``name``
    and ``compare``. `setup` makes the matrix for the agent of a learner.
    """

    name: str
    gather_with_gradient: Gather = staticmethod(whole)  # the loss is one of the whole batch

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def setup(self, learner: Any) -> None:
        sizes = learner.agent.rssm.feature_size, learner.agent.encoder.out_features
        self.projector = nn.Linear(*sizes, bias=False, device=learner.device)
        init_truncated_normal_(self.projector.weight, sizes[0])

    def forward(self, data: TensorDictBase) -> TensorDict:
        """From ``features`` ``[B, T, F]`` and ``encoded_latents`` ``[B, T, E]``."""
        features, encoded = data["features"].flatten(0, 1), data["encoded_latents"].detach().flatten(0, 1)
        predicted = F.linear(features, self.projector.weight.to(features.dtype))  # [B * T, E]
        loss = self.compare(*(self.gather_with_gradient(full_precision(x)) for x in (predicted, encoded)))
        return TensorDict({f"loss_{self.name}": self.scale * loss})

    def compare(self, predicted: Tensor, encoded: Tensor) -> Tensor:
        raise NotImplementedError


class BarlowTerm(PredictionTerm):
    """The loss of R2-Dreamer: equal units correlate, different ones do not (`barlow_loss`).

    Example:
        >>> from dreamer_torchrl import Learner, build_agent
        >>> from dreamer_torchrl.learners.learner import example_batch
        >>> from dreamer_torchrl.modules import NoDecoder
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano", decoder=NoDecoder)
        >>> learner = Learner(agent, extra_losses=[BarlowTerm()])
        >>> metrics, _ = learner.update(example_batch(agent, batch=2, length=4))
        >>> "loss_barlow" in metrics.keys(), "loss_reconstruction" in metrics.keys()
        (True, False)
    """

    name = "barlow"

    def __init__(self, scale: float = 0.05, off_diagonal: float = 5e-4):
        super().__init__(scale)
        self.off_diagonal = off_diagonal

    def compare(self, predicted: Tensor, encoded: Tensor) -> Tensor:
        return barlow_loss(predicted, encoded, self.off_diagonal)


class InfoNCETerm(PredictionTerm):
    """The encoder's output of one's own step is recognized among those of a batch (`infonce_loss`)."""

    name = "infonce"

    def compare(self, predicted: Tensor, encoded: Tensor) -> Tensor:
        return infonce_loss(predicted, encoded)
