"""Heads that predict a number or a probability from features."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dreamer_torchrl.modules.distributions import BernoulliDist, TwoHotDist, two_hot_bins, two_hot_cross_entropy
from dreamer_torchrl.modules.layers import MLP, Layers, full_precision
from dreamer_torchrl.modules.spaces import by_variable
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

Cost = Callable[..., Tensor]
"""From logits, targets ``[..., M]`` and M weights (one, if left out) to the loss ``[...]``."""


class Head(nn.Module, AsTensorDictModule):
    """Features to logits and the prediction that they stand for, which is `mean` of a subclass.

    `cost` is its loss against targets ``[..., M]``, weighted and summed: ``[...]``; targets get no gradient.
    """

    in_keys = ("features",)

    def __init__(
        self,
        in_features: int,
        units: int,
        layers: int,
        outputs: int,
        scale: float = 1.0,
        kind: Layers = Layers(),  # noqa: B008
    ):
        super().__init__()
        self.mlp = MLP(in_features, units, layers, kind.hidden)
        self.logits = kind.linear(units, outputs, scale)

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """Features in one or more parts ``[..., F_i]`` to logits ``[..., outputs]`` and prediction ``[..., 1]``."""
        logits = full_precision(self.logits(self.mlp(joined_features(features))))
        return logits, self.mean(logits)


class TwoHotHead(Head):
    """Predict a number of any magnitude: reward or value. Starts at exactly 0.

    Example:
        >>> logits, prediction = TwoHotHead(6, units=8, layers=1)(torch.ones(5, 6))
        >>> logits.shape, prediction.abs().max().item()
        (torch.Size([5, 255]), 0.0)
    """

    out_keys = ("state_value_logits", "state_value")

    def __init__(
        self,
        in_features: int,
        units: int,
        layers: int = 3,
        bins: int = 255,
        kind: Layers = Layers(),  # noqa: B008
    ):
        super().__init__(in_features, units, layers, bins, 0.0, kind)
        self.register_buffer("bins", two_hot_bins(bins), persistent=False)
        self.cost = TwoHotCost(bins)

    def mean(self, logits: Tensor) -> Tensor:
        return TwoHotDist(logits, self.bins).mean


class NormalHead(Head):
    """Predict a number as the mean of a normal of deviation 1: reward or value of DreamerV1 and V2.

    Example:
        >>> mean, prediction = NormalHead(6, units=8, layers=1)(torch.ones(5, 6))
        >>> mean.shape, mean is prediction
        (torch.Size([5, 1]), True)
    """

    out_keys = ("state_value_logits", "state_value")

    def __init__(
        self,
        in_features: int,
        units: int,
        layers: int = 3,
        outputs: int = 1,
        kind: Layers = Layers(),  # noqa: B008
    ):
        super().__init__(in_features, units, layers, outputs, kind=kind)

    def mean(self, logits: Tensor) -> Tensor:
        return logits

    @staticmethod
    def cost(mean: Tensor, targets: Tensor, weights: tuple[float, ...] = (1.0,)) -> Tensor:
        return sum(w * normal_cost(mean, target) for w, target in zip(weights, targets.split(1, -1), strict=True))


class ContinueHead(Head):
    """Predict the probability that the episode continues, times the discount gamma.

    Example:
        >>> logits, probability = ContinueHead(6, units=8)(torch.ones(5, 6))
        >>> logits.shape, bool((probability > 0).all())
        (torch.Size([5, 1]), True)
    """

    out_keys = ("continue_logits", "continuation")

    def __init__(self, in_features: int, units: int, layers: int = 1, kind: Layers = Layers()):  # noqa: B008
        super().__init__(in_features, units, layers, 1, kind=kind)

    def mean(self, logits: Tensor) -> Tensor:
        return BernoulliDist(logits).mean


class MaskHead(Head):
    """Predict the action mask: a logit for each class, and whether it is allowed: from a probability of 0.5 on.

    The likeliest class of each variable is always allowed. ``groups`` are pairs of variables and their classes
    (`ActionSpace.class_groups`).

    Example:
        >>> logits, allowed = MaskHead(6, units=8, groups=[(2, 3)])(torch.ones(5, 6))
        >>> logits.shape, allowed.unflatten(-1, (2, 3)).any(-1).all()
        (torch.Size([5, 6]), tensor(True))
    """

    out_keys = ("action_mask_logits", "predicted_action_mask")

    def __init__(
        self,
        in_features: int,
        units: int,
        groups: Sequence[tuple[int, int]],
        layers: int = 1,
        kind: Layers = Layers(),  # noqa: B008
    ):
        super().__init__(in_features, units, layers, sum(count * classes for count, classes in groups), kind=kind)
        self.groups = groups

    def mean(self, logits: Tensor) -> Tensor:
        parts = by_variable(logits, self.groups)
        return torch.cat([(x >= x.amax(-1, keepdim=True).clamp_max(0)).flatten(-2) for x in parts], -1)


class AlwaysContinue(nn.Module, AsTensorDictModule):
    """In place of a `ContinueHead` where no step ends an episode: takes the same, and learns nothing."""

    in_keys, out_keys = ("features",), ("continue_logits", "continuation")

    def __init__(self, in_features: int, units: int, layers: int = 1, kind: Layers = Layers()):  # noqa: B008
        super().__init__()

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(full_precision(features[0][..., :1]))
        return 100.0 * one, one


class TwoHotCrossEntropy(nn.Module):
    forward = staticmethod(two_hot_cross_entropy)  # as a module, so that a backend can replace it


class TwoHotCost(nn.Module):
    """`two_hot_cross_entropy` with the bins that it takes: logits, targets ``[..., M]`` and M weights to ``[...]``."""

    def __init__(self, bins: int = 255):
        super().__init__()
        self.cross_entropy = TwoHotCrossEntropy()
        self.register_buffer("bins", two_hot_bins(bins), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weights: tuple[float, ...] = (1.0,)) -> Tensor:
        return self.cross_entropy(logits, self.bins, targets, weights)


def normal_cost(mean: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood ``[...]`` of targets under normals of deviation 1, ``[..., N]`` each."""
    return (0.5 * (mean - target.detach()).square() + 0.5 * math.log(2 * math.pi)).sum(-1)


def joined_features(parts: tuple[Tensor, ...]) -> Tensor:
    """Features that may come in parts, as ``belief`` and ``state`` do in TorchRL; the first gives the batch axes."""
    if len(parts) == 1:
        return parts[0]
    batch = parts[0].shape[:-1]
    return torch.cat([part.reshape(*batch, -1).to(parts[0].dtype) for part in parts], -1)
