"""Heads that predict a number or a probability from features."""

import torch
from torch import Tensor, nn

from dreamer_torchrl.modules.distributions import BernoulliDist, TwoHotDist, two_hot_bins, two_hot_cross_entropy
from dreamer_torchrl.modules.layers import MLP, Linear, full_precision
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule


class Head(nn.Module, AsTensorDictModule):
    """Features to logits and the prediction that they stand for, which is `mean` of a subclass."""

    in_keys = ("features",)

    def __init__(self, in_features: int, units: int, layers: int, outputs: int, scale: float = 1.0):
        super().__init__()
        self.mlp = MLP(in_features, units, layers)
        self.logits = Linear(units, outputs, scale)

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

    def __init__(self, in_features: int, units: int, layers: int, bins: int = 255):
        super().__init__(in_features, units, layers, bins, scale=0.0)
        self.register_buffer("bins", two_hot_bins(bins), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        return TwoHotDist(logits, self.bins).mean


class ContinueHead(Head):
    """Predict the probability that the episode continues, times the discount gamma.

    Example:
        >>> logits, probability = ContinueHead(6, units=8)(torch.ones(5, 6))
        >>> logits.shape, bool((probability > 0).all())
        (torch.Size([5, 1]), True)
    """

    out_keys = ("continue_logits", "continuation")

    def __init__(self, in_features: int, units: int, layers: int = 1):
        super().__init__(in_features, units, layers, 1)

    def mean(self, logits: Tensor) -> Tensor:
        return BernoulliDist(logits).mean


class TwoHotCrossEntropy(nn.Module):
    forward = staticmethod(two_hot_cross_entropy)  # as a module, so that a backend can replace it


def joined_features(parts: tuple[Tensor, ...]) -> Tensor:
    """Features that may come in parts, as ``belief`` and ``state`` do in TorchRL; the first gives the batch axes."""
    if len(parts) == 1:
        return parts[0]
    batch = parts[0].shape[:-1]
    return torch.cat([part.reshape(*batch, -1).to(parts[0].dtype) for part in parts], -1)
