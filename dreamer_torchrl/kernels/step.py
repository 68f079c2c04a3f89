"""One step of acting by a kernel, which reads the weights where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_torchrl.kernels import structures as c
from dreamer_torchrl.kernels.calls import call
from dreamer_torchrl.kernels.weights import actor_weights, layer_of, sizes_of
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import CastLayer


class NativeStep:
    """From what is seen to the next belief, state and action, both drawn.

    The addresses of the weights are collected once and again where weights were replaced by others; new values in the
    same tensors, as an optimizer writes them, need nothing.
    """

    def __init__(self, rssm: RSSM, actor: Actor):
        self.rssm, self.actor = rssm, actor
        self._collected: tuple[list[int], c.ActArguments | None] = [], None
        encoded = rssm.posterior.linear.in_features - rssm.belief_size
        self._widths = (encoded, actor.space.size, rssm.belief_size, rssm.stochastic, rssm.classes)
        modules = [*rssm.modules(), *actor.modules()]
        # Where the parameters are found, as modules may be lent others for a while.
        self._places = [(module._parameters, name) for module in modules for name in module._parameters]

    def takes(self, encoded: Tensor, previous_action: Tensor, belief: Tensor, state: Tensor) -> bool:
        """Whether these are as wide as the weights: the kernel would read other memory."""
        widths = (encoded.shape[-1], previous_action.shape[-1], belief.shape[-1], *state.shape[1:])
        rows = {len(x) for x in (encoded, previous_action, belief, state)}
        return widths == self._widths and len(rows) == 1

    def __call__(
        self,
        encoded: Tensor,
        previous_action: Tensor,
        kept: Tensor,
        belief: Tensor,
        state: Tensor,
        noise: Tensor,
        action_noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, E]``, ``[N, A]``, ``[N, 1]``, ``[N, D]``, ``[N, S, K]`` and noise to belief, state and action."""
        dtype, rssm = encoded.dtype, self.rssm
        addresses = [parameters[name].data_ptr() for parameters, name in self._places]
        known, collected = self._collected
        if collected is None or addresses != known:
            collected = self._collect()
            self._collected = addresses, collected
        outputs = {
            "next_belief": encoded.new_empty(len(encoded), rssm.belief_size),
            "next_state": encoded.new_empty(len(encoded), rssm.stochastic, rssm.classes),
            "action": encoded.new_empty(len(encoded), self.actor.space.size),
        }
        names = ("encoded", "previous_action", "kept", "belief", "state", "noise", "action_noise")
        inputs = (encoded, previous_action, kept, belief, state, noise, action_noise)
        tensors = {name: x.to(dtype).contiguous() for name, x in zip(names, inputs, strict=True)} | outputs
        arguments = c.ActArguments.from_buffer_copy(collected)  # another thread may be in a call of its own
        arguments.rows, arguments.threads = len(encoded), torch.get_num_threads()
        for name, tensor in tensors.items():  # alive until the call is over
            setattr(arguments, name, tensor.data_ptr())
        call("act", dtype, arguments)
        return tuple(outputs.values())

    def __reduce__(self) -> tuple[type[NativeStep], tuple[RSSM, Actor]]:
        """A copy collects addresses of its own."""
        return NativeStep, (self.rssm, self.actor)

    def _collect(self) -> c.ActArguments:
        rssm, core, dtype = self.rssm, self.rssm.core, self.rssm.prior_logits.bias.dtype
        own = core.belief_size // core.blocks
        mix_own, mix_recurrent, mix_action = core.mix.weight.split([own, 2 * core.hidden, core.hidden], 1)
        belief_in, state_in, action_in = (
            CastLayer.of(layer, dtype) for layer in (core.belief_in, core.state_in, core.action_in)
        )
        core_weights = c.CoreWeights(
            c.Source.of(belief_in.weight.t()),
            c.Source.of(state_in.weight.t()),
            c.Source.of(mix_own),
            c.Source.of(mix_recurrent, shared=True),
            c.Source.of(core.gates.weight),
        )
        tensors = {"belief_bias": belief_in.bias, "belief_scale": belief_in.scale, "state_bias": state_in.bias}
        tensors |= {"state_scale": state_in.scale, "mix_scale": core.mix_norm.norm.weight}
        c.fill(core_weights, tensors | {"gates_bias": core.gates.bias})
        posterior = CastLayer.of(rssm.posterior, dtype)
        arguments = c.ActArguments(
            size=sizes_of(rssm),
            encoded_size=posterior.weight.shape[1] - rssm.belief_size,
            unimix=rssm.unimix,
            core=core_weights,
            actor=actor_weights(self.actor, dtype)[0],
            action_in=layer_of(action_in),
            posterior=layer_of(posterior),
            mix_action=c.Source.of(mix_action, shared=True),
            posterior_logits=c.Source.of(rssm.posterior_logits.weight.t()),
        )
        c.fill(arguments, {"mix_bias": core.mix.bias, "posterior_logits_bias": rssm.posterior_logits.bias})
        return arguments
