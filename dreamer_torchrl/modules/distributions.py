"""The distributions of DreamerV3 as small classes, and the pure functions they are made of.

Each draws by ``sample(noise)``, a pure function of parameters and noise: uniforms in [0, 1) for classes, standard
normals for floats. Without noise it draws its own, so that the classes work in a ``ProbabilisticTensorDictModule``.
Parameters may come in bfloat16; probabilities are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import full_precision


def symlog(x: Tensor) -> Tensor:
    """Compress large magnitudes: ``sign(x) ln(1 + |x|)``."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Undo `symlog`."""
    return x.sign() * x.abs().expm1()


def unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """Softmax over the last axis, mixed with ``unimix`` of the uniform distribution."""
    logits = full_precision(logits)
    # Torch's CPU softmax is ten times slower over a last axis that is shorter than a vector register of 16 floats.
    narrow = logits.ndim > 1 and logits.shape[-1] < 16
    probs = logits.transpose(-1, -2).softmax(-2).transpose(-1, -2) if narrow else logits.softmax(-1)
    return probs if unimix == 0 else (1 - unimix) * probs + unimix / logits.shape[-1]


def sample_one_hot(probs: Tensor, noise: Tensor) -> Tensor:
    """Choose by inverting the cumulative distribution: probabilities ``[..., K]``, uniforms ``[...]``."""
    cumulative = probs.cumsum(-1)  # [..., K]
    # Scaled by the last entry, a uniform below 1 stays below it whatever the rounding: some class is always chosen.
    passed = (cumulative <= noise.unsqueeze(-1) * cumulative[..., -1:]).to(probs.dtype)
    return F.pad(passed[..., :-1], (1, 0), value=1.0) - passed


def straight_through(one_hot: Tensor, probs: Tensor) -> Tensor:
    """The sample forwards, the gradient of the probabilities backwards."""
    return one_hot + (probs - probs.detach())


def two_hot_bins(count: int = 255) -> Tensor:
    """Bins from about -4.85e8 to 4.85e8, dense around 0 and exactly symmetric."""
    half = symexp(torch.linspace(-20, 0, (count + 1) // 2))
    mirrored = -half.flip(0)
    return torch.cat([half, mirrored[1:] if count % 2 else mirrored])


class Draw(Distribution):
    """A distribution that draws from given noise.

    Subclasses say how one draw reads its noise (`_draw`) and how the noise for one draw is made (`_noise`).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def sample(self, noise: Tensor | Sequence[int] | None = None) -> Tensor:
        """Draw without gradient; a shape instead of noise draws so many times, as in torch."""
        return self._draw(self._as_noise(noise)).detach()  # no_grad would cache probabilities without gradient

    def rsample(self, noise: Tensor | Sequence[int] | None = None) -> Tensor:
        """Draw with gradient."""
        return self._draw(self._as_noise(noise))

    @property
    def deterministic_sample(self) -> Tensor:
        """The mode, under the name by which TorchRL asks for it."""
        return self.mode

    def _as_noise(self, noise: Tensor | Sequence[int] | None) -> Tensor:
        return noise if isinstance(noise, Tensor) else self._noise(tuple(noise or ()))

    def _draw(self, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


class OneHotDist(Draw):
    """Independent variables with one of K classes each, mixed with 1% of uniform, straight-through samples.

    Args:
        logits: ``[..., S, K]``; the event is ``[S, K]``, noise is ``[..., S]``.
        unimix: share of the uniform distribution.

    Example:
        >>> OneHotDist(torch.tensor([[0.0, 9.0, 0.0]])).sample(torch.tensor([0.5]))
        tensor([[0., 1., 0.]])
    """

    has_rsample = True
    has_enumerate_support = False

    def __init__(self, logits: Tensor, unimix: float = 0.01):
        self.logits, self.unimix = full_precision(logits), unimix
        super().__init__(logits.shape[:-2], logits.shape[-2:], validate_args=False)

    @cached_property
    def probs(self) -> Tensor:
        return unimix_probs(self.logits, self.unimix)

    @cached_property
    def log_probs(self) -> Tensor:
        return self.logits.log_softmax(-1) if self.unimix == 0 else self.probs.log()

    @property
    def mode(self) -> Tensor:
        one_hot = F.one_hot(self.probs.argmax(-1), self.probs.shape[-1]).to(self.probs.dtype)
        return straight_through(one_hot, self.probs)

    @property
    def mean(self) -> Tensor:
        return self.probs

    def log_prob(self, value: Tensor) -> Tensor:
        return (self.log_probs * value).sum((-1, -2))

    def entropy(self) -> Tensor:
        return -(self.probs * self.log_probs).sum((-1, -2))

    def _draw(self, noise: Tensor) -> Tensor:
        return straight_through(sample_one_hot(self.probs.detach(), noise), self.probs)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(*shape, *self.logits.shape[:-1], dtype=self.logits.dtype, device=self.logits.device)


class BoundedNormal(Draw):
    """Diagonal normal with mean in [-1, 1] and deviation in [``min_std``, ``max_std``]; samples are not clipped.

    Args:
        loc: raw mean ``[..., A]``, goes through tanh.
        scale: raw deviation ``[..., A]``, goes through a sigmoid; noise is ``[..., A]``.

    Example:
        >>> BoundedNormal(torch.zeros(1, 2), torch.zeros(1, 2)).stddev.round(decimals=2)
        tensor([[0.8900, 0.8900]])
    """

    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, min_std: float = 0.1, max_std: float = 1.0):
        self._mean = full_precision(loc).tanh()
        self._stddev = (max_std - min_std) * torch.sigmoid(full_precision(scale) + 2.0) + min_std
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def stddev(self) -> Tensor:
        return self._stddev

    @property
    def mode(self) -> Tensor:
        return self._mean

    def log_prob(self, value: Tensor) -> Tensor:
        standard = (value - self._mean) / self._stddev
        return (-0.5 * standard.square() - self._stddev.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self._stddev.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def _draw(self, noise: Tensor) -> Tensor:
        return self._mean + self._stddev * noise

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(*shape, *self._mean.shape, dtype=self._mean.dtype, device=self._mean.device)


class TwoHotDist(Distribution):
    """A number as a distribution over bins that reach from -4.85e8 to 4.85e8; ``mean`` is the prediction.

    Args:
        logits: ``[..., bins]``; the event is ``[1]``, noise is ``[...]``.
        bins: the bins' values, those of `two_hot_bins` if left out.

    Example:
        >>> TwoHotDist(torch.zeros(2, 255)).mean
        tensor([[0.],
                [0.]])
    """

    has_rsample = False

    def __init__(self, logits: Tensor, bins: Tensor | None = None):
        self.logits = full_precision(logits)
        self.bins = two_hot_bins(logits.shape[-1]).to(self.logits) if bins is None else bins
        super().__init__(logits.shape[:-1], torch.Size((1,)), validate_args=False)

    @cached_property
    def probs(self) -> Tensor:
        return self.logits.softmax(-1)

    @cached_property
    def _log_normalizer(self) -> Tensor:
        return self.logits.logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        # Pairs of mirrored bins are summed first, so that uniform probabilities give exactly 0 and not a rounding error
        # of bins that are as large as 4.85e8.
        weighted = self.probs * self.bins
        half = self.bins.shape[-1] // 2
        pairs = weighted[..., :half].flip(-1) + weighted[..., -half:]
        return pairs.sum(-1, keepdim=True)

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
    weight = torch.where(below == above, 0.0, to_below / (to_below + to_above))
    return below, above, weight


def two_hot_cross_entropy(logits: Tensor, bins: Tensor, targets: Tensor, weights: tuple[float, ...] = (1.0,)) -> Tensor:
    """Cross entropies to M targets, weighted and summed; no gradient flows to the targets.

    Args:
        logits: ``[..., bins]``.
        bins: ``[bins]``.
        targets: ``[..., M]``.
        weights: M of them.

    Returns:
        ``[...]``.

    Example:
        >>> two_hot_cross_entropy(torch.zeros(2, 255), two_hot_bins(), torch.ones(2, 1))
        tensor([5.5413, 5.5413])
    """
    prediction = TwoHotDist(logits, bins)
    terms = (weight * prediction.log_prob(target) for weight, target in zip(weights, targets.split(1, -1), strict=True))
    return -sum(terms)


class BernoulliDist(Distribution):
    """Bernoulli; ``log_prob`` takes soft targets in [0, 1] too, such as the continue target with gamma in it.

    Args:
        logits: ``[..., 1]``; the event is ``[1]``, noise is ``[..., 1]``.

    Example:
        >>> BernoulliDist(torch.zeros(1)).mean
        tensor([0.5000])
    """

    has_rsample = False

    def __init__(self, logits: Tensor):
        self.logits = full_precision(logits)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(self.logits.expand_as(value), value, reduction="none").sum(-1)
