"""The stochastic part of the latent state: how it is sampled, compared, read by networks and stored in the replay."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Bounded

from dreamer_torchrl.modules.distributions import OneHotDist, sample_one_hot, straight_through, unimix_probs

PACKED_DTYPES = (torch.uint8, torch.int16)  # of class indices in the replay: the first that holds all classes


@dataclass(frozen=True)
class CategoricalLatent:
    """A state of S ``variables``, one-hot vectors of K ``classes`` each (DreamerV2 and V3), made from logits."""

    variables: int
    classes: int
    unimix: float = 0.01

    @property
    def size(self) -> int:
        return self.variables * self.classes

    @property
    def spec(self) -> Bounded:
        return Bounded(0, 1, (self.variables, self.classes))  # as networks take it

    @property
    def packed_dtype(self) -> torch.dtype:
        """Of a state in the replay, class indices ``[S]``."""
        for dtype in PACKED_DTYPES:
            if self.classes - 1 <= torch.iinfo(dtype).max:
                return dtype
        limit = torch.iinfo(PACKED_DTYPES[-1]).max + 1
        raise ValueError(f"classes={self.classes} are more than class indices can tell apart: choose at most {limit}.")

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
        p, q = unimix_probs(posterior, self.unimix), unimix_probs(prior, self.unimix)
        log_p, log_q = p.log(), q.log()
        dynamics, representation = p.detach() * (log_p.detach() - log_q), p * (log_p - log_q.detach())
        return dynamics.sum((-1, -2)), representation.sum((-1, -2))

    def entropy(self, logits: Tensor) -> Tensor:
        """Of a state, summed over its variables: ``[..., S, K]`` to ``[...]``."""
        probs = unimix_probs(logits, self.unimix)
        return -(probs * probs.log()).sum((-1, -2))

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
