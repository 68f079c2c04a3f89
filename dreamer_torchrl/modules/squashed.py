"""Actions of Dreamer V1 and V2 that stay inside -1 to 1: a truncated normal and a normal sent through tanh.

Neither is in `torch.distributions`: its `TanhTransform` is infinite where a sample rounds to 1, and nothing there is
truncated. Both take raw numbers ``[..., A]`` and, like `BoundedNormal`, draw from standard normals ``[..., A]``.
"""

import math
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamer_torchrl.modules.distributions import Draw
from dreamer_torchrl.modules.layers import full_precision

INSIDE = 1 - 1e-6  # the largest action of a truncated normal
BELOW_ONE = 0.99999997  # in float32 the last number before 1


class TruncatedNormal(Draw):
    """The normal of mean ``tanh(loc)`` and deviation ``2 sigmoid((raw + init_std) / 2) + min_std`` within -1 to 1 (V2).

    ``loc`` and ``scale`` are mean and deviation before the truncation. The gradient of a draw ignores the truncation
    and the rounding to less than 1: with respect to ``loc`` it is 1, with respect to ``scale`` (draw - loc) / scale.

    Example:
        >>> policy = TruncatedNormal(torch.tensor([0.0, 0.5493]), torch.zeros(2))
        >>> policy.mode
        tensor([0.0000, 0.5000])
        >>> policy.rsample(torch.tensor([0.0, -1.0])).abs().le(1).all()
        tensor(True)
    """

    def __init__(self, loc: Tensor, raw: Tensor, init_std: float = 0.0, min_std: float = 0.1):
        self.loc, self.min_std = full_precision(loc).tanh(), min_std
        self.scale = 2 * torch.sigmoid((full_precision(raw) + init_std) / 2) + min_std
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """Of the interval, in deviations from the mean."""
        return (-1 - self.loc) / self.scale, (1 - self.loc) / self.scale

    @cached_property
    def _mass(self) -> Tensor:
        """The normal's probability of the interval; at least a third, as the mean lies in it."""
        low, high = self._ends
        return normal_cdf(high) - normal_cdf(low)

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def mean(self) -> Tensor:
        low, high = self._ends
        return self.loc + self.scale * (normal_density(low) - normal_density(high)) / self._mass

    @property
    def variance(self) -> Tensor:
        low, high = self._ends
        slope = (low * normal_density(low) - high * normal_density(high)) / self._mass
        return self.scale.square() * (1 + slope) - (self.mean - self.loc).square()

    def log_prob(self, value: Tensor) -> Tensor:
        standard = (value - self.loc) / self.scale
        constant = 0.5 * math.log(2 * math.pi)
        return (-0.5 * standard.square() - self.scale.log() - constant - self._mass.log()).sum(-1)

    def entropy(self) -> Tensor:
        low, high = self._ends
        slope = (low * normal_density(low) - high * normal_density(high)) / self._mass
        return ((self.scale * self._mass).log() + 0.5 * math.log(2 * math.pi * math.e) + 0.5 * slope).sum(-1)

    @property
    def entropy_limits(self) -> tuple[float, float]:
        return _truncated_entropies(self.min_std)

    def draw_of(self, raw: Tensor) -> Tensor:
        """The draw, with its gradient, that came out as ``raw`` before it was rounded to less than 1."""
        with torch.no_grad():
            standard = (raw - self.loc) / self.scale
        return self._rounded(self.loc + self.scale * standard)

    @torch.no_grad()
    def noise_of(self, raw: Tensor) -> Tensor:
        """The noise that gives the draw ``raw``; in float32 good to three digits."""
        standard, low, high = (x.double() for x in ((raw - self.loc) / self.scale, *self._ends))
        mass = normal_cdf(high) - normal_cdf(low)
        above = standard > 0  # whichever tail is short has the digits
        share = torch.where(above, normal_cdf(-standard) - normal_cdf(-high), normal_cdf(standard) - normal_cdf(low))
        noise = torch.special.ndtri(share / mass)
        return torch.where(above, -noise, noise).to(self.loc)

    def _draw(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            low, high = self._ends
            above = noise > 0  # mirrored then: close to 1 a probability has no digits left
            lowest = torch.where(above, -high, low)
            standard = torch.special.ndtri(normal_cdf(lowest) + normal_cdf(-noise.abs()) * self._mass)
            standard = torch.where(above, -standard, standard).clamp(low, high)
        return self._rounded(self.loc + self.scale * standard)

    def _rounded(self, raw: Tensor) -> Tensor:
        rounded = raw.clamp(-INSIDE, INSIDE)
        return rounded.detach() + (raw - raw.detach()) if raw.requires_grad else rounded

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(*shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)


class TanhNormal(Draw):
    """tanh of a normal of mean ``mean_scale * tanh(loc / mean_scale)`` (V1); raw deviations of 0 give ``init_std``.

    The deviation is ``softplus(raw + ln(exp(init_std) - 1)) + min_std``. ``loc`` and ``scale`` are mean and deviation
    of the normal. Mode (the likeliest, each row its own), mean and entropy are those of samples, of which ``samples``
    gives the noise, ``[n, ..., A]``; by default 100 normals that are always the same.

    Example:
        >>> policy = TanhNormal(torch.full((4, 2), 2.0), torch.zeros(4, 2), init_std=0.1)
        >>> policy.mode.shape, policy.mode.equal(policy.mode)
        (torch.Size([4, 2]), True)
    """

    def __init__(
        self,
        loc: Tensor,
        raw: Tensor,
        init_std: float = 5.0,
        min_std: float = 1e-4,
        mean_scale: float = 5.0,
        samples: Tensor | None = None,
    ):
        self.loc = mean_scale * torch.tanh(full_precision(loc) / mean_scale)
        self.scale = F.softplus(full_precision(raw) + math.log(math.expm1(init_std))) + min_std
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self._given = samples

    @property
    def samples(self) -> Tensor:
        """With gradient, ``[n, ..., A]``."""
        noise = self._given
        if noise is None:
            fixed = _fixed_normals(100, self.loc.shape[-1], self.loc.dtype, self.loc.device)
            noise = fixed.unflatten(0, (-1, *(1 for _ in self.batch_shape)))
        return self._draw(noise)

    @property
    def mode(self) -> Tensor:
        samples = self.samples.detach()
        best = self.log_prob(samples).argmax(0, keepdim=True)  # [1, ...]
        return samples.gather(0, best.unsqueeze(-1).expand(1, *self.loc.shape)).squeeze(0)

    @property
    def mean(self) -> Tensor:
        return self.samples.mean(0)

    @property
    def variance(self) -> Tensor:
        return self.samples.var(0)

    def log_prob(self, value: Tensor) -> Tensor:
        before = value.clamp(-BELOW_ONE, BELOW_ONE).atanh()
        slope = 2 * (math.log(2) - before - F.softplus(-2 * before))  # ln of tanh's derivative
        standard = (before - self.loc) / self.scale
        return (-0.5 * standard.square() - self.scale.log() - 0.5 * math.log(2 * math.pi) - slope).sum(-1)

    def entropy(self) -> Tensor:
        return -self.log_prob(self.samples).mean(0)

    def _draw(self, noise: Tensor) -> Tensor:
        return torch.tanh(self.loc + self.scale * noise)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(*shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)  # `torch.special.ndtr` has no digits in float32 below -5


def normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


@cache
def _truncated_entropies(min_std: float) -> tuple[float, float]:
    ends = torch.tensor([[math.inf, -math.inf], [0.0, math.inf]], dtype=torch.float64, device="cpu")
    low, high = TruncatedNormal(*ends.split(1, -1), min_std=min_std).entropy().tolist()
    return low, high


@cache
def _fixed_normals(count: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: no random numbers of the run are used up, and a CUDA graph can hold what reads them."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
