"""The stochastic part of the latent state: how it is sampled, compared, read by networks and stored in the replay."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torchrl.data import Bounded, Unbounded

from dreamer_torchrl.modules.distributions import OneHotDist, sample_one_hot, straight_through, unimix_probs
from dreamer_torchrl.modules.layers import full_precision
from dreamer_torchrl.modules.spaces import Continuous, Discrete

PACKED_DTYPES = (torch.uint8, torch.int16)  # of class indices in the replay: the first that holds all classes


@dataclass(frozen=True)
class CategoricalLatent:
    """A state of S ``variables``, one-hot vectors of K ``classes`` each (DreamerV2 and V3), made from logits."""

    variables: int
    classes: int
    unimix: float = 0.01
    noise_kind: ClassVar[str] = "uniform"

    @property
    def size(self) -> int:
        """Numbers of a state."""
        return self.variables * self.classes

    @property
    def parameters(self) -> int:
        """Numbers that `as_state` takes from the last layer."""
        return self.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state, as networks take it."""
        return (self.variables, self.classes)

    @property
    def spec(self) -> Bounded:
        return Bounded(0, 1, self.shape)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Of a state in the replay: class indices."""
        return (self.variables,)

    @property
    def packed_dtype(self) -> torch.dtype:
        for dtype in PACKED_DTYPES:
            if self.classes - 1 <= torch.iinfo(dtype).max:
                return dtype
        limit = torch.iinfo(PACKED_DTYPES[-1]).max + 1
        raise ValueError(f"classes={self.classes} are more than class indices can tell apart: choose at most {limit}.")

    def stored(self, state: Tensor | None = None) -> Discrete:
        """What the replay stores: class indices, or one-hot vectors if ``state`` is that."""
        one_hot = state is not None and state.is_floating_point()
        shape = (self.variables, self.classes) if one_hot else self.packed_shape
        return Discrete((self.classes,) * self.variables, shape, self.packed_dtype, one_hot)

    def noise(
        self, *batch: int, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> Tensor:
        """What one `sample` each takes, ``[*batch, S]``."""
        return torch.rand(*batch, self.variables, generator=generator, device=device)

    def sample(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Straight-through sample ``[..., S, K]``, in the precision of the logits; noise is uniforms ``[..., S]``."""
        probs = unimix_probs(logits, self.unimix)
        if noise is None:
            noise = torch.rand(probs.shape[:-1], dtype=probs.dtype, device=probs.device)
        one_hot = sample_one_hot(probs.detach(), noise)
        return (straight_through(one_hot, probs) if probs.requires_grad else one_hot).to(logits.dtype)

    def mode(self, logits: Tensor) -> Tensor:
        return OneHotDist(logits, self.unimix).mode.to(logits.dtype)

    def kl(self, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """KL ``[...]`` of posterior from prior, with the gradient of the prior (dynamics) and of the posterior."""
        (p, log_p), (_, log_q) = self._probs(posterior), self._probs(prior)
        dynamics, representation = p.detach() * (log_p.detach() - log_q), p * (log_p - log_q.detach())
        return dynamics.sum((-1, -2)), representation.sum((-1, -2))

    def entropy(self, logits: Tensor) -> Tensor:
        """Of a state, summed over its variables: ``[..., S, K]`` to ``[...]``."""
        probs, log_probs = self._probs(logits)
        return -(probs * log_probs).sum((-1, -2))

    def _probs(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and their logarithms, which stay finite without unimix, too."""
        probs = unimix_probs(logits, self.unimix)
        return probs, probs.log() if self.unimix else full_precision(logits).log_softmax(-1)

    def as_state(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.variables, self.classes))

    def features(self, belief: Tensor, state: Tensor) -> Tensor:
        """What heads, actor and decoder see: ``[..., D]`` and ``[..., S, K]`` to ``[..., D + S*K]``."""
        return torch.cat([belief, state.flatten(-2)], -1)

    def pack(self, state: Tensor) -> Tensor:
        """One-hot ``[..., S, K]`` to class indices ``[..., S]`` for the replay, one byte each up to 256 classes."""
        return state.argmax(-1).to(self.packed_dtype)

    def unpack(self, state: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Undo `pack`; a state that is one-hot already is returned as it is."""
        return state if state.is_floating_point() else F.one_hot(state.long(), self.classes).to(dtype)


ACTIVATIONS = {  # of V1, and the three of V2
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "sigmoid2": lambda raw: 2 * torch.sigmoid(raw / 2),
}


@dataclass(frozen=True)
class GaussianLatent:
    """A state of S ``variables``, one number each (Dreamer V1, an option of V2): a diagonal normal.

    It has the methods of `CategoricalLatent`. A state is ``[..., S, 1]``, its parameters are ``[..., S, 2]``: mean and
    standard deviation. The sample's gradient is the reparameterized one.

    Args:
        classes: not used.
        min_std: added to the activated deviations.
        activation: from raw to positive deviations, ``softplus``, ``sigmoid`` or ``sigmoid2`` (``2 sigmoid(raw / 2)``).

    Example:
        >>> latent = GaussianLatent(variables=3)
        >>> parameters = latent.as_state(torch.zeros(5, latent.parameters))
        >>> latent.sample(parameters, latent.noise(5)).shape
        torch.Size([5, 3, 1])
    """

    variables: int
    classes: int = 1
    min_std: float = 0.1
    activation: str = "softplus"
    noise_kind: ClassVar[str] = "normal"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}.")

    @property
    def size(self) -> int:
        return self.variables

    @property
    def parameters(self) -> int:
        return 2 * self.variables

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.variables, 1)

    @property
    def spec(self) -> Unbounded:
        return Unbounded(self.shape)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def packed_dtype(self) -> torch.dtype:
        return torch.float32

    def stored(self, state: Tensor | None = None) -> Continuous:
        return Continuous(self.packed_shape)

    def noise(
        self, *batch: int, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> Tensor:
        return torch.randn(*batch, self.variables, generator=generator, device=device)

    def sample(self, parameters: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, std = parameters.split(1, -1)  # [..., S, 1]
        return mean + std * (torch.randn_like(mean) if noise is None else noise.unsqueeze(-1).to(mean))

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters[..., :1]

    def kl(self, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """KL ``[...]`` of posterior from prior, with the gradient of the prior (dynamics) and of the posterior."""
        dynamics = kl_divergence(self._normal(posterior.detach()), self._normal(prior))
        representation = kl_divergence(self._normal(posterior), self._normal(prior.detach()))
        return dynamics.sum(-1), representation.sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        return self._normal(parameters).entropy().sum(-1)

    def _normal(self, parameters: Tensor) -> Normal:
        return Normal(*full_precision(parameters).unbind(-1), validate_args=False)

    def as_state(self, flat: Tensor) -> Tensor:
        """All means, then all raw deviations, ``[..., 2 S]``, to parameters ``[..., S, 2]``."""
        mean, raw = flat.chunk(2, -1)
        return torch.stack([mean, ACTIVATIONS[self.activation](raw) + self.min_std], -1)

    def features(self, belief: Tensor, state: Tensor) -> Tensor:
        return torch.cat([belief, state.flatten(-2)], -1)

    def pack(self, state: Tensor) -> Tensor:
        """The replay stores the numbers themselves."""
        return state

    def unpack(self, state: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return state.to(dtype)


Latent = CategoricalLatent | GaussianLatent  # or another class with these attributes and methods
