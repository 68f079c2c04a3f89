"""The weights of an `RSSM` for a loop over time: split by what they multiply, each cast once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import BlockLinear, HiddenLayer, Linear, rms_norm
from dreamer_torchrl.modules.rssm import RSSM, bounded, gru_update


class CastLayer(NamedTuple):
    weight: Tensor
    bias: Tensor
    scale: Tensor

    @classmethod
    def of(cls, layer: HiddenLayer, dtype: torch.dtype) -> CastLayer:
        return cls(*_cast(layer.linear, dtype), layer.after.norm.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(rms_norm(F.linear(x, self.weight, self.bias), self.scale))


class StepWeights(NamedTuple):
    """What stays inside the loop; biases and scales are vectors, or have a row for each of N sequences."""

    belief_in: Tensor  # [hidden, D]
    belief_bias: Tensor
    belief_scale: Tensor
    state_in: Tensor  # [hidden, S*K]
    state_bias: Tensor
    state_scale: Tensor
    mix_own: Tensor  # [g, D / g, D / g]
    mix_recurrent: Tensor  # [2 hidden, D]
    mix_scale: Tensor
    gates: Tensor  # [g, D / g, 3 D / g]
    gates_bias: Tensor
    posterior_own: Tensor  # [hidden, D]
    posterior_scale: Tensor
    posterior_logits: Tensor  # [S*K, hidden]
    posterior_logits_bias: Tensor

    def next_belief(self, belief: Tensor, state: Tensor, action_share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The recurrence; beside the belief it gives what went into the matrices, ``[N, 2 hidden]`` and ``[N, D]``."""
        belief_input = CastLayer(self.belief_in, self.belief_bias, self.belief_scale)(belief)
        state_input = CastLayer(self.state_in, self.state_bias, self.state_scale)(state)
        recurrent = torch.cat([belief_input, state_input], -1)
        mixed = _times_blocks(belief, self.mix_own) + torch.addmm(action_share, recurrent, self.mix_recurrent)
        mixed = F.silu(rms_norm(mixed, self.mix_scale))
        gates = _times_blocks(mixed, self.gates) + self.gates_bias
        return gru_update(gates, belief, len(self.gates)), recurrent, mixed


class SplitRSSM:
    """An `RSSM` made ready for a loop: what stays inside it (``step``), and the shares that need no belief or state.

    The mixing layer sees the same three inputs in every block, so their share is one plain matrix product.
    """

    def __init__(self, rssm: RSSM, dtype: torch.dtype):
        core = rssm.core
        self.latent, self.belief_size, self.dtype = rssm.latent, rssm.belief_size, dtype
        belief_in, state_in, self.action_in, posterior, *self.prior = (
            CastLayer.of(layer, dtype)
            for layer in (core.belief_in, core.state_in, core.action_in, rssm.posterior, *rssm.prior)
        )
        own = core.belief_size // core.blocks
        mix = core.mix.weight.to(dtype)  # [g, D / g + 3 hidden, D / g]
        shared = mix[:, own:].transpose(0, 1).flatten(1)  # [3 hidden, D]
        mix_recurrent, self.mix_action = shared.split([2 * core.hidden, core.hidden])
        self.mix_bias, self.posterior_bias = core.mix.bias.to(dtype), posterior.bias
        encoded = posterior.weight.shape[1] - rssm.belief_size
        posterior_own, self.posterior_encoded = posterior.weight.split([rssm.belief_size, encoded], 1)
        self.prior_logits = _cast(rssm.prior_logits, dtype)
        mixing = mix[:, :own], mix_recurrent, core.mix_norm.norm.weight, *_cast(core.gates, dtype)
        posterior_weights = posterior_own, posterior.scale, *_cast(rssm.posterior_logits, dtype)
        self.step = StepWeights(*belief_in, *state_in, *mixing, *posterior_weights)

    def action_share(self, action: Tensor) -> Tensor:
        """The action's and the bias's share of the mixing layer for any batch: ``[..., A]`` to ``[..., D]``."""
        return self.action_in(bounded(action.to(self.dtype))) @ self.mix_action + self.mix_bias

    def encoded_share(self, encoded: Tensor) -> Tensor:
        """The observation's and the bias's share of the posterior for any batch: ``[..., E]`` to ``[..., hidden]``."""
        return F.linear(encoded, self.posterior_encoded, self.posterior_bias)

    def prior_from(self, belief: Tensor) -> Tensor:
        for layer in self.prior:
            belief = layer(belief)
        return self.latent.as_state(F.linear(belief, *self.prior_logits))


def _cast(layer: Linear | BlockLinear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return layer.weight.to(dtype), layer.bias.to(dtype)


def _times_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """Each block's chunk of ``[N, in]`` times its own matrix ``[g, in / g, out / g]``."""
    blocks = x.unflatten(-1, (len(weight), -1)).transpose(0, 1)  # [g, N, in / g]
    return torch.bmm(blocks, weight).transpose(0, 1).flatten(1)


class MatrixInputs(NamedTuple):
    """What each matrix of an observed step is multiplied with: T tensors ``[B, ...]`` each, noted by the loop."""

    old_belief: list[Tensor]  # forgotten at resets
    old_state: list[Tensor]  # likewise
    recurrent: list[Tensor]
    mixed: list[Tensor]
    hidden: list[Tensor]
    belief: list[Tensor]


def deferred_weights(
    weights: StepWeights, action_shares: Tensor, encoded_shares: Tensor, seen: MatrixInputs
) -> tuple[Tensor, Tensor, Iterator[StepWeights]]:
    """Shares and the weights of each of T steps, which get their gradients for all steps at once.

    Inside the loop matrices are detached. Each product is added to something ``[B, T, ...]``, a bias or a share, whose
    gradient is that of the product; with the inputs that the loop noted it makes the matrix's (`GradientOfProducts`).
    Biases and scales have a row for each step and sequence, which autograd sums up at the end.
    """
    w, product = weights, GradientOfProducts.apply
    names = [name for name in w._fields if name.endswith(("_bias", "_scale"))]
    vectors = {name: getattr(w, name).expand(*action_shares.shape[:2], -1) for name in names}  # [B, T, ...]
    for name, inputs, matrix in (
        ("belief_bias", seen.old_belief, w.belief_in.t()),
        ("state_bias", seen.old_state, w.state_in.t()),
        ("gates_bias", seen.mixed, w.gates),
        ("posterior_logits_bias", seen.hidden, w.posterior_logits.t()),
    ):
        vectors[name] = product(vectors[name], [inputs], matrix)
    detached = StepWeights(*(weight.detach() for weight in w))
    each = (detached._replace(**dict(zip(vectors, now, strict=True))) for now in unbind_steps(vectors.values()))
    action_shares = product(action_shares, [seen.old_belief, seen.recurrent], w.mix_own, w.mix_recurrent)
    return action_shares, product(encoded_shares, [seen.belief], w.posterior_own.t()), each


class GradientOfProducts(torch.autograd.Function):
    """Hand on what each step of a loop adds to its products, and give their matrices the gradients of all steps."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, seen: Sequence[list[Tensor]], *weights: Tensor) -> Tensor:
        """``[B, T, out]`` and per matrix a list, into which the loop puts its T inputs ``[B, in]``, detached."""
        ctx.seen, ctx.blocks = seen, [len(weight) if weight.ndim == 3 else 0 for weight in weights]
        return added.view_as(added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (torch.stack(steps, 1) for steps in ctx.seen)  # [B, T, in] each
        return gradient, None, *(product_of(x, gradient, g) for x, g in zip(inputs, ctx.blocks, strict=True))


def product_of(x: Tensor, y: Tensor, blocks: int = 0) -> Tensor:
    """Sum over ``[B, T]`` of the outer products of x with y, ``[X, Y]``, or of their chunks, ``[g, X / g, Y / g]``."""
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    if not blocks:
        return x.t() @ y
    left, right = (z.unflatten(1, (blocks, -1)).transpose(0, 1) for z in (x, y))  # [g, N, ...]
    return torch.bmm(left.transpose(1, 2), right)


def unbind_steps(sequences: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(sequence.unbind(1) for sequence in sequences), strict=True)
