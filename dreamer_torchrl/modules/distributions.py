"""The distributions of DreamerV3, and the pure functions they are made of.

Parameters may come in bfloat16; probabilities are float32. Torch's own distributions round otherwise than these.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, constraints
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import full_precision


def symlog(x: Tensor) -> Tensor:
    """Compress large magnitudes: ``sign(x) ln(1 + |x|)``."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().expm1()


def unimix_probs(logits: Tensor, unimix: float, mask: Tensor | None = None) -> Tensor:
    """Softmax over the last axis, mixed with ``unimix`` of the uniform distribution; 0 where ``mask`` is False."""
    logits = full_precision(logits)
    logits = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    # Torch's CPU softmax is ten times slower over a last axis that is shorter than a vector register of 16 floats.
    narrow = logits.ndim > 1 and logits.shape[-1] < 16
    probs = logits.transpose(-1, -2).softmax(-2).transpose(-1, -2) if narrow else logits.softmax(-1)
    if unimix == 0:
        return probs
    uniform = 1 / logits.shape[-1] if mask is None else mask / mask.sum(-1, keepdim=True)
    return (1 - unimix) * probs + unimix * uniform


def sample_one_hot(probs: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """Choose by inverting the cumulative distribution: probabilities ``[..., K]``, uniforms ``[...]``.

    A class whose ``mask`` is False, and whose probability is 0, is never chosen.
    """
    cumulative = probs.cumsum(-1)  # [..., K]
    # Scaled by the last entry, a uniform below 1 stays below it whatever the rounding: some class is always chosen.
    passed = (cumulative <= noise.unsqueeze(-1) * cumulative[..., -1:]).to(probs.dtype)
    drawn = F.pad(passed[..., :-1], (1, 0), value=1.0) - passed
    if mask is None:
        return drawn
    # A parallel sum on a GPU may round differently at a class of probability 0 than at the one before.
    return torch.where((drawn.bool() & mask).any(-1, keepdim=True), drawn, most_likely(probs))


def most_likely(probs: Tensor) -> Tensor:
    return F.one_hot(probs.argmax(-1), probs.shape[-1]).to(probs.dtype)


def straight_through(one_hot: Tensor, probs: Tensor) -> Tensor:
    """The sample forwards, the gradient of the probabilities backwards."""
    return one_hot + (probs - probs.detach())


def two_hot_bins(count: int = 255) -> Tensor:
    """Bins from about -4.85e8 to 4.85e8, dense around 0 and exactly symmetric."""
    half = symexp(torch.linspace(-20, 0, (count + 1) // 2))
    return torch.cat([half, -half.flip(0)[count % 2 :]])


class Draw(Distribution):
    """A distribution whose draw is a pure function of noise (`_draw`), which it makes (`_noise`) if none is given."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    entropy_limits: tuple[float, float] | None = None
    """Least and largest entropy of one variable, where they are known."""

    def rsample(self, noise: Tensor | Sequence[int] | None = None) -> Tensor:
        """Draw with gradient; a shape instead of noise draws so many times, as in torch."""
        return self._draw(noise if isinstance(noise, Tensor) else self._noise(tuple(noise or ())))

    def sample(self, noise: Tensor | Sequence[int] | None = None) -> Tensor:
        return self.rsample(noise).detach()  # no_grad would cache probabilities without gradient

    @property
    def deterministic_sample(self) -> Tensor:
        return self.mode  # TorchRL's name of it


class OneHotDist(Draw):
    """Straight-through variables of K classes: logits ``[..., S, K]``, event ``[S, K]``, noise ``[..., S]``.

    Where the ``mask`` ``[..., S, K]`` is False a class has the probability 0, and the log-probability of the smallest
    normal number. A variable all of whose classes are masked has no mask.
    """

    def __init__(self, logits: Tensor, unimix: float = 0.01, mask: Tensor | None = None):
        self.logits, self.unimix = full_precision(logits), unimix
        self.mask = mask if mask is None else mask | ~mask.any(-1, keepdim=True)
        super().__init__(logits.shape[:-2], logits.shape[-2:], validate_args=False)

    @cached_property
    def probs(self) -> Tensor:
        return unimix_probs(self.logits, self.unimix, self.mask)

    @cached_property
    def log_probs(self) -> Tensor:
        if self.mask is not None:
            tiny, hidden = torch.finfo(self.logits.dtype).tiny, ~self.mask
            if self.unimix:
                return self.probs.masked_fill(hidden, tiny).log()
            return self.logits.masked_fill(hidden, -math.inf).log_softmax(-1).masked_fill(hidden, math.log(tiny))
        return self.logits.log_softmax(-1) if self.unimix == 0 else self.probs.log()

    @property
    def mode(self) -> Tensor:
        return straight_through(most_likely(self.probs), self.probs)

    @property
    def mean(self) -> Tensor:
        return self.probs

    def log_prob(self, value: Tensor) -> Tensor:
        return (self.log_probs * value.detach()).sum((-1, -2))  # a sample that is straight-through has a gradient

    def entropy(self) -> Tensor:
        return -(self.probs * self.log_probs).sum((-1, -2))

    @property
    def entropy_limits(self) -> tuple[float, float]:
        classes = self.logits.shape[-1]
        rest = self.unimix / classes  # the probability of each class but the one that is certain
        certain = 1 - (classes - 1) * rest
        least = -(certain * math.log(certain) + (classes - 1) * (rest and rest * math.log(rest)))
        return least, math.log(classes)

    def _draw(self, noise: Tensor) -> Tensor:
        return straight_through(sample_one_hot(self.probs.detach(), noise, self.mask), self.probs)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(*shape, *self.logits.shape[:-1], dtype=self.logits.dtype, device=self.logits.device)


class BoundedNormal(Draw):
    """Diagonal normal with mean in [-1, 1] and deviation in [``min_std``, ``max_std``]; samples are not clipped.

    Raw means ``[..., A]`` go through tanh, raw deviations through a sigmoid; noise is ``[..., A]``.
    """

    mean = stddev = None  # in place of torch's properties

    def __init__(self, loc: Tensor, scale: Tensor, min_std: float = 0.1, max_std: float = 1.0):
        self.limits = min_std, max_std
        self.mean = full_precision(loc).tanh()
        self.stddev = (max_std - min_std) * torch.sigmoid(full_precision(scale) + 2.0) + min_std
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        standard = (value - self.mean) / self.stddev
        return (-0.5 * standard.square() - self.stddev.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.stddev.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    @property
    def entropy_limits(self) -> tuple[float, float]:
        low, high = (math.log(std) + 0.5 * math.log(2 * math.pi * math.e) for std in self.limits)
        return low, high

    def _draw(self, noise: Tensor) -> Tensor:
        return self.mean + self.stddev * noise

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(*shape, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)


class TwoHotDist(Distribution):
    """A number as a distribution over bins, of logits ``[..., bins]``; ``mean`` is the prediction ``[..., 1]``."""

    def __init__(self, logits: Tensor, bins: Tensor | None = None):
        self.logits = full_precision(logits)
        self.bins = two_hot_bins(logits.shape[-1]).to(self.logits) if bins is None else bins
        super().__init__(logits.shape[:-1], torch.Size((1,)), validate_args=False)

    @cached_property
    def _log_normalizer(self) -> Tensor:
        return self.logits.logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        # Pairs of mirrored bins are summed first: uniform probabilities give exactly 0, no rounding error of 4.85e8.
        weighted = self.logits.softmax(-1) * self.bins
        half = self.bins.shape[-1] // 2
        return (weighted[..., :half].flip(-1) + weighted[..., -half:]).sum(-1, keepdim=True)

    @property
    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Negative cross entropy to the two bins around ``value`` of ``[..., 1]``; no gradient flows to the value."""
        below, above, weight = two_hot_neighbours(value.detach().squeeze(-1).to(self.bins.dtype), self.bins)
        logits = self.logits.expand(*below.shape, -1)
        low = logits.gather(-1, below.unsqueeze(-1)).squeeze(-1)
        high = logits.gather(-1, above.unsqueeze(-1)).squeeze(-1)
        return low + weight * (high - low) - self._log_normalizer


def two_hot_neighbours(value: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the bins below and above each value, and the weight of the one above; values outside are clipped."""
    count = torch.searchsorted(bins, value.contiguous(), right=True)
    below = (count - 1).clamp_min(0)
    above = count.clamp_max(bins.shape[0] - 1)
    to_below, to_above = (bins[below] - value).abs(), (bins[above] - value).abs()
    return below, above, torch.where(below == above, 0.0, to_below / (to_below + to_above))


def two_hot_cross_entropy(logits: Tensor, bins: Tensor, targets: Tensor, weights: tuple[float, ...] = (1.0,)) -> Tensor:
    """Cross entropies to targets ``[..., M]``, which get no gradient, weighted and summed: ``[...]``."""
    prediction = TwoHotDist(logits, bins)
    terms = (weight * prediction.log_prob(target) for weight, target in zip(weights, targets.split(1, -1), strict=True))
    return -sum(terms)


class BernoulliDist(Independent):
    """Bernoulli of logits ``[..., 1]``; ``log_prob`` takes soft targets in [0, 1] too."""

    def __init__(self, logits: Tensor):
        super().__init__(Bernoulli(logits=full_precision(logits), validate_args=False), 1, validate_args=False)

    @property
    def mode(self) -> Tensor:
        return (self.base_dist.logits > 0).to(self.base_dist.logits)  # torch's own is nan at a logit of 0
