"""The loops of `rollout.py` by the kernels in C: same inputs, same outputs, same gradients, for the CPU.

Backwards, only the gradient of belief and state goes step by step; the weights' are products over all steps at the end.
"""

import ctypes
from collections import namedtuple
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels.calls import call, fits
from dreamer_torchrl.kernels.weights import actor_fits, actor_of, core_of, layer_of, network_of, sizes_of
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import SplitRSSM, StepWeights, product_of


class NativeObserveSequence(ObserveSequence):
    def loop(self, encoded: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fitting = self.rssm.splits and fits(encoded)
        return native_observe(self.rssm, encoded, *inputs) if fitting else super().loop(encoded, *inputs)


class NativeImagineRollout(ImagineRollout):
    def loop(self, belief: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        plain = not self.gradient and self.mask is None
        fitting = self.rssm.splits and plain and fits(belief) and actor_fits(self.actor)
        return native_imagine(self.rssm, self.actor, belief, *inputs) if fitting else super().loop(belief, *inputs)


def observe_weights(split: SplitRSSM) -> StepWeights:
    """The loop's weights, all in one precision: the scales come in the model's own."""
    return StepWeights(*(weight.to(split.dtype) for weight in split.step))


LoopTensors = namedtuple(
    "LoopTensors",
    "kept action_share encoded_share noise belief state beliefs states logits "
    "inner recurrent mixed hidden gates posterior_inner posterior_hidden probs",
)
"""Inputs, outputs and what the backward pass needs beside them: ``[B, T, ...]``, but the start ``[B, ...]``."""


class NativeObserve(torch.autograd.Function):
    """The loop of `observe`, from shares and start to beliefs, flat states and flat logits."""

    @staticmethod
    def forward(ctx: Any, sizes: ctypes.Structure, unimix: float, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, d, s = sizes.hidden, sizes.belief, sizes.variables * sizes.classes
        widths = d, s, s, 2 * h, 2 * h, d, d, 3 * d, h, h, s
        room = [tensors[0].new_empty(*tensors[0].shape[:2], width) for width in widths]
        x, w = LoopTensors(*(x.contiguous() for x in tensors[:6]), *room), StepWeights(*tensors[6:])
        call("observe", x.kept.dtype, **_observe_arguments(sizes, unimix, x, w))
        ctx.sizes, ctx.unimix = sizes, unimix
        ctx.save_for_backward(*x, *w)
        return x.beliefs, x.states, x.logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_beliefs: Tensor, d_states: Tensor, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        saved, sizes = ctx.saved_tensors, ctx.sizes
        x, w = LoopTensors(*saved[:17]), StepWeights(*saved[17:])
        d_logits = d_logits.clone(memory_format=torch.contiguous_format)  # the states' share is added
        scales = d_logits.new_zeros(len(x.belief), 3 * sizes.hidden + sizes.belief)
        d_belief, d_state = torch.zeros_like(x.belief), torch.zeros_like(x.state)
        d_inner, d_mixed, d_gates, d_posterior = map(torch.empty_like, (x.inner, x.mixed, x.gates, x.posterior_inner))
        arguments = _observe_arguments(sizes, ctx.unimix, x, w)
        arguments |= {"d_beliefs": d_beliefs.contiguous(), "d_states": d_states.contiguous(), "d_logits": d_logits}
        arguments |= {"d_inner": d_inner, "d_mixed": d_mixed, "d_gates": d_gates, "d_posterior_inner": d_posterior}
        arguments |= {"d_belief": d_belief, "d_state": d_state, "d_scales": scales}
        call("observe_backward", x.kept.dtype, **arguments)
        # Each step's masked start, [B, T, D] and [B, T, S*K]
        before = torch.cat([x.belief.unsqueeze(1), x.beliefs[:, :-1]], 1) * x.kept
        before_state = torch.cat([x.state.unsqueeze(1), x.states[:, :-1]], 1) * x.kept
        d_belief_in, d_state_in = d_inner.split(sizes.hidden, -1)  # [B, T, hidden]
        h, d = sizes.hidden, sizes.belief
        belief_scale, state_scale, mix_scale, posterior_scale = scales.sum(0).split([h, h, d, h])
        gradients = StepWeights(
            belief_in=product_of(d_belief_in, before),
            belief_bias=d_belief_in.sum((0, 1)),
            belief_scale=belief_scale,
            state_in=product_of(d_state_in, before_state),
            state_bias=d_state_in.sum((0, 1)),
            state_scale=state_scale,
            mix_own=product_of(before, d_mixed, sizes.blocks),
            mix_recurrent=product_of(x.recurrent, d_mixed),
            mix_scale=mix_scale,
            gates=product_of(x.hidden, d_gates, sizes.blocks),
            gates_bias=d_gates.sum((0, 1)),
            posterior_own=product_of(d_posterior, x.beliefs),
            posterior_scale=posterior_scale,
            posterior_logits=product_of(d_logits, x.posterior_hidden),
            posterior_logits_bias=d_logits.sum((0, 1)),
        )
        return None, None, None, d_mixed, d_posterior, None, d_belief, d_state, *gradients


def native_observe(
    rssm: RSSM, encoded: Tensor, previous_action: Tensor, is_init: Tensor, belief: Tensor, state: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `observe` gives, on tensors that `fits` says yes to."""
    split, dtype = SplitRSSM(rssm, encoded.dtype), encoded.dtype
    kept = (~is_init).to(dtype)  # [B, T, 1]
    shares = split.action_share(previous_action * kept), split.encoded_share(encoded)
    inputs = kept, *shares, noise.to(dtype), belief.to(dtype), state.to(dtype).flatten(1)
    beliefs, states, logits = NativeObserve.apply(sizes_of(rssm), rssm.unimix, *inputs, *observe_weights(split))
    return beliefs, rssm.latent.as_state(states), rssm.latent.as_state(logits)


@torch.no_grad()
def native_imagine(
    rssm: RSSM, actor: Actor, belief: Tensor, state: Tensor, noise: Tensor, action_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """What `ImagineRollout.loop` gives, on tensors that `fits` says yes to."""
    split, dtype, (rows, time) = SplitRSSM(rssm, belief.dtype), belief.dtype, noise.shape[:2]
    weights = observe_weights(split)
    features = belief.new_empty(rows, time + 1, rssm.feature_size)
    features[:, 0, : rssm.belief_size], features[:, 0, rssm.belief_size :] = belief, state.flatten(1)
    actions = belief.new_zeros(rows, time + 1, actor.space.size)
    call(
        "imagine",
        dtype,
        size=sizes_of(rssm),
        rows=rows,
        time=time,
        unimix=rssm.unimix,
        core=core_of(weights[:3], weights[3:6], *weights[6:11]),
        actor=actor_of(actor, dtype),
        action_in=network_of(split.action_in),
        prior=network_of(*split.prior),
        mix_action=layer_of(split.mix_action.t(), split.mix_bias),
        prior_logits=layer_of(*split.prior_logits),
        noise=noise.to(dtype).contiguous(),
        action_noise=action_noise.to(dtype).contiguous(),
        features=features,
        actions=actions,
    )
    return features, actions


def _observe_arguments(sizes: ctypes.Structure, unimix: float, x: LoopTensors, w: StepWeights) -> dict[str, Any]:
    return x._asdict() | {
        "size": sizes,
        "batch": len(x.kept),
        "time": x.kept.shape[1],
        "unimix": unimix,
        "core": core_of(w[:3], w[3:6], *w[6:11]),
        "posterior_own": w.posterior_own.t(),
        "posterior_scale": w.posterior_scale,
        "posterior_logits": w.posterior_logits.t(),
        "posterior_logits_bias": w.posterior_logits_bias,
    }
