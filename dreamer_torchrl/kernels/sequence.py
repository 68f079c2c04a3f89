"""The loops of `rollout.py` by the kernels in C: same inputs, same outputs, same gradients, for the CPU.

Backwards, only the gradient of belief and state goes step by step; those of the weights are one product each over all
steps at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels import structures as c
from dreamer_torchrl.kernels.calls import call, fits
from dreamer_torchrl.kernels.weights import actor_fits, actor_weights, cast_scale, core_of, layer_of, sizes_of
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import SplitRSSM, StepWeights, product_of


class NativeObserveSequence(ObserveSequence):
    """`ObserveSequence` with its loop in a kernel."""

    def loop(self, encoded: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return native_observe(self.rssm, encoded, *inputs) if fits(encoded) else super().loop(encoded, *inputs)


class NativeImagineRollout(ImagineRollout):
    """`ImagineRollout` with its loop in a kernel."""

    def loop(self, belief: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if fits(belief) and actor_fits(self.actor):
            return native_imagine(self.rssm, self.actor, belief, *inputs)
        return super().loop(belief, *inputs)


def observe_weights(split: SplitRSSM) -> StepWeights:
    """The loop's weights, all in one precision: the scales come in the model's own."""
    return StepWeights(*(weight.to(split.dtype) for weight in split.step))


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass, beside its inputs and outputs: ``[B, T, ...]``."""

    inner: Tensor
    recurrent: Tensor
    mixed: Tensor
    hidden: Tensor
    gates: Tensor
    posterior_inner: Tensor
    posterior_hidden: Tensor
    probs: Tensor

    @classmethod
    def empty(cls, like: Tensor, sizes: c.Sizes) -> Kept:
        h, d, s = sizes.hidden, sizes.belief, sizes.variables * sizes.classes
        widths = (2 * h, 2 * h, d, d, 3 * d, h, h, s)
        return cls(*(like.new_empty(*like.shape[:2], width) for width in widths))


class NativeObserve(torch.autograd.Function):
    """The loop of `observe`, from shares and start to beliefs, flat states and flat logits."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: c.Sizes,
        unimix: float,
        kept: Tensor,
        action_share: Tensor,
        encoded_share: Tensor,
        noise: Tensor,
        belief: Tensor,
        state: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, T, 1]``, ``[B, T, D]``, ``[B, T, hidden]``, ``[B, T, S]``, ``[B, D]``, ``[B, S*K]`` and the weights."""
        inputs = tuple(x.contiguous() for x in (kept, action_share, encoded_share, noise, belief, state))
        w, trace = StepWeights(*weights), Kept.empty(action_share, sizes)
        outputs = torch.empty_like(inputs[1]), torch.empty_like(trace.probs), torch.empty_like(trace.probs)
        arguments = _observe_arguments(sizes, unimix, inputs, w, outputs, trace)
        call("observe", action_share.dtype, arguments)
        ctx.sizes, ctx.unimix = sizes, unimix
        ctx.save_for_backward(*inputs, *w, *outputs, *trace)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_beliefs: Tensor, d_states: Tensor, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of shares, start and weights."""
        saved, sizes = ctx.saved_tensors, ctx.sizes
        inputs, w = saved[:6], StepWeights(*saved[6:21])
        outputs, trace = saved[21:24], Kept(*saved[24:])
        kept, belief, state = inputs[0], inputs[4], inputs[5]
        beliefs, states = outputs[:2]
        d = Kept.empty(beliefs, sizes)
        d_logits = d_logits.clone(memory_format=torch.contiguous_format)  # the states' share is added
        scales = d_logits.new_zeros(len(belief), 3 * sizes.hidden + sizes.belief)
        d_belief, d_state = torch.zeros_like(belief), torch.zeros_like(state)
        arguments = _observe_arguments(sizes, ctx.unimix, inputs, w, outputs, trace)
        names = ("d_logits", "d_beliefs", "d_states", "d_posterior_inner", "d_belief", "d_state", "d_scales")
        incoming = (d_logits, d_beliefs.contiguous(), d_states.contiguous())
        gradients = (*incoming, d.posterior_inner, d_belief, d_state, scales)
        c.fill(arguments, beliefs.dtype, dict(zip(names, gradients, strict=True)))
        c.fill(arguments.d_trace, beliefs.dtype, _recurrent(d))
        call("observe_backward", beliefs.dtype, arguments)

        before = torch.cat([belief.unsqueeze(1), beliefs[:, :-1]], 1) * kept  # [B, T, D], each step's masked start
        before_state = torch.cat([state.unsqueeze(1), states[:, :-1]], 1) * kept  # [B, T, S*K]
        d_belief_in, d_state_in = d.inner.split(sizes.hidden, -1)  # [B, T, hidden]
        widths = [sizes.hidden, sizes.hidden, sizes.belief, sizes.hidden]
        belief_scale, state_scale, mix_scale, posterior_scale = scales.sum(0).split(widths)
        gradients = StepWeights(
            belief_in=product_of(d_belief_in, before),
            belief_bias=d_belief_in.sum((0, 1)),
            belief_scale=belief_scale,
            state_in=product_of(d_state_in, before_state),
            state_bias=d_state_in.sum((0, 1)),
            state_scale=state_scale,
            mix_own=product_of(before, d.mixed, sizes.blocks),
            mix_recurrent=product_of(trace.recurrent, d.mixed),
            mix_scale=mix_scale,
            gates=product_of(trace.hidden, d.gates, sizes.blocks),
            gates_bias=d.gates.sum((0, 1)),
            posterior_own=product_of(d.posterior_inner, beliefs),
            posterior_scale=posterior_scale,
            posterior_logits=product_of(d_logits, trace.posterior_hidden),
            posterior_logits_bias=d_logits.sum((0, 1)),
        )
        return None, None, None, d.mixed, d.posterior_inner, None, d_belief, d_state, *gradients


def native_observe(
    rssm: RSSM, encoded: Tensor, previous_action: Tensor, is_init: Tensor, belief: Tensor, state: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `observe` gives, on tensors that `fits` says yes to."""
    split = SplitRSSM(rssm, encoded.dtype)
    kept = (~is_init).to(encoded.dtype)  # [B, T, 1]
    shares = split.action_share(previous_action * kept), split.encoded_share(encoded)
    start = belief.to(encoded.dtype), state.to(encoded.dtype).flatten(1)
    beliefs, states, logits = NativeObserve.apply(
        sizes_of(rssm), rssm.unimix, kept, *shares, noise.to(encoded.dtype), *start, *observe_weights(split)
    )
    return beliefs, rssm.latent.as_state(states), rssm.latent.as_state(logits)


@torch.no_grad()
def native_imagine(
    rssm: RSSM, actor: Actor, belief: Tensor, state: Tensor, noise: Tensor, action_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """What `imagine` gives under an actor, on tensors that `fits` says yes to.

    Features ``[N, H + 1, F]`` and flat actions ``[N, H + 1, A]``, the last of them zero.
    """
    split, dtype = SplitRSSM(rssm, belief.dtype), belief.dtype
    weights = observe_weights(split)
    rows, time = noise.shape[:2]
    features = belief.new_empty(rows, time + 1, rssm.feature_size)
    features[:, 0, : rssm.belief_size], features[:, 0, rssm.belief_size :] = belief, state.flatten(1)
    actions = belief.new_zeros(rows, time + 1, actor.space.size)
    layers = [cast_scale(layer) for layer in (split.action_in, *split.prior)]
    actor_in_c, kept_alive = actor_weights(actor, dtype)
    arguments = c.ImagineArguments(
        size=sizes_of(rssm),
        rows=rows,
        time=time,
        threads=torch.get_num_threads(),
        prior_layers=len(split.prior),
        unimix=rssm.unimix,
        core=core_of(weights),
        actor=actor_in_c,
        action_in=layer_of(layers[0]),
        mix_action=c.Source.of(split.mix_action, dtype),
        prior_logits=c.Source.of(split.prior_logits[0].t(), dtype),
    )
    for index, layer in enumerate(layers[1:]):
        arguments.prior[index] = layer_of(layer)
    tensors = {
        "mix_bias": split.mix_bias,
        "prior_logits_bias": split.prior_logits[1],
        "noise": noise.to(dtype).contiguous(),
        "action_noise": action_noise.to(dtype).contiguous(),
        "features": features,
        "actions": actions,
    }
    c.fill(arguments, dtype, tensors)
    call("imagine", dtype, arguments)
    del kept_alive  # until here
    return features, actions


def _recurrent(trace: Kept) -> dict[str, Tensor]:
    return {name: getattr(trace, name) for name in ("inner", "recurrent", "mixed", "hidden", "gates")}


def _observe_arguments(
    sizes: c.Sizes,
    unimix: float,
    inputs: tuple[Tensor, ...],
    w: StepWeights,
    outputs: tuple[Tensor, ...],
    trace: Kept,
) -> c.ObserveArguments:
    dtype = w.gates.dtype
    arguments = c.ObserveArguments(
        size=sizes,
        batch=len(inputs[0]),
        time=inputs[0].shape[1],
        threads=torch.get_num_threads(),
        unimix=unimix,
        core=core_of(w),
        posterior_own=c.Source.of(w.posterior_own.t(), dtype),
        posterior_logits=c.Source.of(w.posterior_logits.t(), dtype),
    )
    names = ("kept", "action_share", "encoded_share", "noise", "belief", "state")
    tensors = dict(zip(names, inputs, strict=True)) | dict(zip(("beliefs", "states", "logits"), outputs, strict=True))
    tensors |= {name: getattr(w, name) for name in ("posterior_scale", "posterior_logits_bias")}
    tensors |= {name: getattr(trace, name) for name in ("posterior_inner", "posterior_hidden", "probs")}
    c.fill(arguments, dtype, tensors)
    c.fill(arguments.trace, dtype, _recurrent(trace))
    return arguments
