"""An `RSSM` made ready for a loop over time: its matrices split by what they multiply."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamer_torchrl.modules.layers import HiddenLayer, rms_norm
from dreamer_torchrl.modules.rssm import RSSM, bounded, gru_update


class CastLayer(NamedTuple):
    """A `HiddenLayer` with its weights cast once."""

    weight: Tensor
    bias: Tensor
    scale: Tensor

    @classmethod
    def of(cls, layer: HiddenLayer, dtype: torch.dtype) -> CastLayer:
        return cls(layer.linear.weight.to(dtype), layer.linear.bias.to(dtype), layer.after.norm.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(rms_norm(F.linear(x, self.weight, self.bias), self.scale))


class Rows(NamedTuple):
    """What one observed step adds and scales with, a row for each of N sequences."""

    belief_bias: Tensor  # [N, hidden]
    state_bias: Tensor  # [N, hidden]
    gates_bias: Tensor  # [N, 3 D]
    logits_bias: Tensor  # [N, S*K]
    belief_scale: Tensor  # [N, hidden]
    state_scale: Tensor  # [N, hidden]
    mix_scale: Tensor  # [N, D]
    posterior_scale: Tensor  # [N, hidden]


class SplitRSSM:
    """An `RSSM` made ready for a loop: matrices split by what they multiply, each cast once.

    The mixing layer sees the same three inputs in every block, so their share is one plain matrix product. Of it, the
    action's share does not depend on the state, as the observation's share of the posterior does not: both are computed
    for all steps together (`action_share`, `encoded_share`).
    """

    def __init__(self, rssm: RSSM, dtype: torch.dtype):
        core = rssm.core
        self.rssm, self.dtype, self.blocks = rssm, dtype, core.blocks
        self.belief_in = CastLayer.of(core.belief_in, dtype)
        self.state_in = CastLayer.of(core.state_in, dtype)
        self.action_in = CastLayer.of(core.action_in, dtype)
        own = core.belief_size // core.blocks
        mix = core.mix.weight.to(dtype)  # [g, D / g + 3 hidden, D / g]
        shared = mix[:, own:].transpose(0, 1).flatten(1)  # [3 hidden, D]
        self.mix_own, self.mix_bias, self.mix_scale = mix[:, :own], core.mix.bias.to(dtype), core.mix_norm.norm.weight
        self.mix_recurrent, self.mix_action = shared.split([2 * core.hidden, core.hidden])
        self.gates, self.gates_bias = core.gates.weight.to(dtype), core.gates.bias.to(dtype)
        posterior = CastLayer.of(rssm.posterior, dtype)
        encoded = posterior.weight.shape[1] - rssm.belief_size
        self.posterior_own, self.posterior_encoded = posterior.weight.split([rssm.belief_size, encoded], 1)
        self.posterior_bias, self.posterior_scale = posterior.bias, posterior.scale
        self.posterior_logits = rssm.posterior_logits.weight.to(dtype), rssm.posterior_logits.bias.to(dtype)
        self.prior = [CastLayer.of(layer, dtype) for layer in rssm.prior]
        self.prior_logits = rssm.prior_logits.weight.to(dtype), rssm.prior_logits.bias.to(dtype)

    def at(self, rows: Rows) -> SplitRSSM:
        """The same for one step: detached matrices, and biases and scales of its own."""
        step = copy.copy(self)
        step.belief_in = CastLayer(self.belief_in.weight.detach(), rows.belief_bias, rows.belief_scale)
        step.state_in = CastLayer(self.state_in.weight.detach(), rows.state_bias, rows.state_scale)
        step.mix_own, step.mix_recurrent = self.mix_own.detach(), self.mix_recurrent.detach()
        step.mix_scale, step.gates, step.gates_bias = rows.mix_scale, self.gates.detach(), rows.gates_bias
        step.posterior_own, step.posterior_scale = self.posterior_own.detach(), rows.posterior_scale
        step.posterior_logits = self.posterior_logits[0].detach(), rows.logits_bias
        return step

    def action_share(self, action: Tensor) -> Tensor:
        """The action's and the bias's share of the mixing layer for any batch: ``[..., A]`` to ``[..., D]``."""
        return self.action_in(bounded(action.to(self.dtype))) @ self.mix_action + self.mix_bias

    def encoded_share(self, encoded: Tensor) -> Tensor:
        """The observation's and the bias's share of the posterior for any batch: ``[..., E]`` to ``[..., hidden]``."""
        return F.linear(encoded, self.posterior_encoded, self.posterior_bias)

    def next_belief(self, belief: Tensor, state: Tensor, action_share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The recurrence from ``[N, D]``, ``[N, S*K]`` and the action's share ``[N, D]``.

        Beside the belief it gives what went into the matrices on the way: ``[N, 2 hidden]`` and ``[N, D]``.
        """
        recurrent = torch.cat([self.belief_in(belief), self.state_in(state)], -1)
        mixed = self._blocks(belief, self.mix_own) + torch.addmm(action_share, recurrent, self.mix_recurrent)
        mixed = F.silu(rms_norm(mixed, self.mix_scale))
        return gru_update(self._blocks(mixed, self.gates) + self.gates_bias, belief, self.blocks), recurrent, mixed

    def _blocks(self, x: Tensor, weight: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # [g, N, in / g]
        return torch.bmm(blocks, weight).transpose(0, 1).flatten(1)
