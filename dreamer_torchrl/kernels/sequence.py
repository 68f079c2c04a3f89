"""The loops of `sequence.py` by the kernels in C: same inputs, same outputs, same gradients, for the CPU.

Backwards, only the gradient of belief and state goes step by step; those of the weights are one product each over all
steps at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_torchrl.kernels import structures as c
from dreamer_torchrl.kernels.calls import call
from dreamer_torchrl.kernels.weights import actor_weights, layer_of, sizes_of, with_cast_scale
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.at_once import block_product
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import SplitRSSM


class ObserveWeights(NamedTuple):
    """All that an observed step multiplies with, as `SplitRSSM` has it."""

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

    @classmethod
    def of(cls, split: SplitRSSM) -> ObserveWeights:
        core = (*split.belief_in, *split.state_in, split.mix_own, split.mix_recurrent, split.mix_scale)
        posterior = (split.posterior_own, split.posterior_scale, *split.posterior_logits)
        weights = (*core, split.gates, split.gates_bias, *posterior)
        return cls(*(weight.to(split.dtype) for weight in weights))  # the scales come in the model's own precision


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
        w, trace = ObserveWeights(*weights), Kept.empty(action_share, sizes)
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
        inputs, w = saved[:6], ObserveWeights(*saved[6:21])
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
        c.fill(arguments, dict(zip(names, (*incoming, d.posterior_inner, d_belief, d_state, scales), strict=True)))
        c.fill(arguments.d_trace, _recurrent(d))
        call("observe_backward", beliefs.dtype, arguments)

        before = torch.cat([belief.unsqueeze(1), beliefs[:, :-1]], 1) * kept  # [B, T, D], each step's masked start
        before_state = torch.cat([state.unsqueeze(1), states[:, :-1]], 1) * kept  # [B, T, S*K]
        d_belief_in, d_state_in = d.inner.flatten(0, 1).split(sizes.hidden, 1)
        belief_scale, state_scale, mix_scale, posterior_scale = scales.sum(0).split(
            [sizes.hidden, sizes.hidden, sizes.belief, sizes.hidden]
        )
        gradients = ObserveWeights(
            belief_in=d_belief_in.t() @ before.flatten(0, 1),
            belief_bias=d_belief_in.sum(0),
            belief_scale=belief_scale,
            state_in=d_state_in.t() @ before_state.flatten(0, 1),
            state_bias=d_state_in.sum(0),
            state_scale=state_scale,
            mix_own=block_product(before, d.mixed, sizes.blocks),
            mix_recurrent=trace.recurrent.flatten(0, 1).t() @ d.mixed.flatten(0, 1),
            mix_scale=mix_scale,
            gates=block_product(trace.hidden, d.gates, sizes.blocks),
            gates_bias=d.gates.sum((0, 1)),
            posterior_own=d.posterior_inner.flatten(0, 1).t() @ beliefs.flatten(0, 1),
            posterior_scale=posterior_scale,
            posterior_logits=d_logits.flatten(0, 1).t() @ trace.posterior_hidden.flatten(0, 1),
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
        sizes_of(rssm), rssm.unimix, kept, *shares, noise.to(encoded.dtype), *start, *ObserveWeights.of(split)
    )
    return beliefs, rssm.as_state(states), rssm.as_state(logits)


@torch.no_grad()
def native_imagine(
    rssm: RSSM, actor: Actor, belief: Tensor, state: Tensor, noise: Tensor, action_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """What `imagine` gives under an actor, on tensors that `fits` says yes to.

    Features ``[N, H + 1, F]`` and flat actions ``[N, H + 1, A]``, the last of them zero.
    """
    split, dtype = SplitRSSM(rssm, belief.dtype), belief.dtype
    weights = ObserveWeights.of(split)
    rows, time = noise.shape[:2]
    features = belief.new_empty(rows, time + 1, rssm.feature_size)
    features[:, 0, : rssm.belief_size], features[:, 0, rssm.belief_size :] = belief, state.flatten(1)
    actions = belief.new_zeros(rows, time + 1, actor.space.size)
    layers = [with_cast_scale(layer) for layer in (split.action_in, *split.prior)]
    actor_in_c, kept_alive = actor_weights(actor, dtype)
    arguments = c.ImagineArguments(
        size=sizes_of(rssm),
        rows=rows,
        time=time,
        threads=torch.get_num_threads(),
        prior_layers=len(split.prior),
        unimix=rssm.unimix,
        core=_core(weights),
        actor=actor_in_c,
        action_in=layer_of(layers[0]),
        mix_action=c.Source.of(split.mix_action),
        prior_logits=c.Source.of(split.prior_logits[0].t()),
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
    c.fill(arguments, tensors)
    call("imagine", dtype, arguments)
    del kept_alive  # until here
    return features, actions


def _core(w: ObserveWeights) -> c.CoreWeights:
    core = c.CoreWeights(
        c.Source.of(w.belief_in.t()),
        c.Source.of(w.state_in.t()),
        *(c.Source.of(matrix) for matrix in (w.mix_own, w.mix_recurrent, w.gates)),
    )
    names = ("belief_bias", "belief_scale", "state_bias", "state_scale", "mix_scale", "gates_bias")
    c.fill(core, {name: getattr(w, name) for name in names})
    return core


def _recurrent(trace: Kept) -> dict[str, Tensor]:
    return {name: getattr(trace, name) for name in ("inner", "recurrent", "mixed", "hidden", "gates")}


def _observe_arguments(
    sizes: c.Sizes,
    unimix: float,
    inputs: tuple[Tensor, ...],
    w: ObserveWeights,
    outputs: tuple[Tensor, ...],
    trace: Kept,
) -> c.ObserveArguments:
    arguments = c.ObserveArguments(
        size=sizes,
        batch=len(inputs[0]),
        time=inputs[0].shape[1],
        threads=torch.get_num_threads(),
        unimix=unimix,
        core=_core(w),
        posterior_own=c.Source.of(w.posterior_own.t()),
        posterior_logits=c.Source.of(w.posterior_logits.t()),
    )
    names = ("kept", "action_share", "encoded_share", "noise", "belief", "state")
    tensors = dict(zip(names, inputs, strict=True)) | dict(zip(("beliefs", "states", "logits"), outputs, strict=True))
    tensors |= {name: getattr(w, name) for name in ("posterior_scale", "posterior_logits_bias")}
    tensors |= {name: getattr(trace, name) for name in ("posterior_inner", "posterior_hidden", "probs")}
    c.fill(arguments, tensors)
    c.fill(arguments.trace, _recurrent(trace))
    return arguments
