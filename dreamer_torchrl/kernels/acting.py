"""One step of acting by a kernel, which reads the weights where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_torchrl.kernels import structures as c
from dreamer_torchrl.kernels.calls import call, fits
from dreamer_torchrl.kernels.weights import actor_fits, actor_weights, core_of, layer_of, sizes_of
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import CastLayer, StepWeights


class NativeRSSM(RSSM):
    """An `RSSM` that acts by a kernel."""

    def act(self, actor: Actor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `RSSM.act`."""
        step = vars(self).setdefault("_acting", ActingStep())
        if torch.is_grad_enabled() or not fits(inputs[0]) or not step.takes(self, actor, *inputs[:5]):
            return super().act(actor, *inputs)
        return step(*inputs)


class ActingStep:
    """From what is seen to the next belief, state and action, both drawn.

    The addresses of the weights are collected once and again where weights were replaced by others; new values in the
    same tensors, as an optimizer writes them, need nothing.
    """

    def __init__(self) -> None:
        self._of: tuple[RSSM, Actor] | None = None
        self._known: tuple[list[int], torch.dtype | None, c.ActArguments] | None = None

    def __reduce__(self) -> tuple[type[ActingStep], tuple[()]]:
        """A copy collects addresses of its own."""
        return ActingStep, ()

    def takes(
        self, rssm: RSSM, actor: Actor, encoded: Tensor, action: Tensor, is_init: Tensor, belief: Tensor, state: Tensor
    ) -> bool:
        """Whether these are as wide as the weights and of their precision: the kernel would read other memory."""
        if self._of is None or self._of[0] is not rssm or self._of[1] is not actor:
            if not actor_fits(actor):
                return False
            width = rssm.posterior.linear.in_features - rssm.belief_size
            self._widths = (width, actor.space.size, 1, rssm.belief_size, rssm.stochastic, rssm.classes)
            modules = [*rssm.modules(), *actor.modules()]
            # Where the parameters are found, as modules may be lent others for a while.
            self._places = [(module._parameters, name) for module in modules for name in module._parameters]
            self._of, self._known = (rssm, actor), None
        inputs = (encoded, action, is_init, belief, state)
        widths = tuple(size for x in inputs for size in x.shape[1:])
        if widths != self._widths or len({len(x) for x in inputs}) != 1:
            return False
        parameters = [parameters[name] for parameters, name in self._places]
        addresses = [parameter.data_ptr() for parameter in parameters]
        if self._known is None or addresses != self._known[0]:
            dtype = parameters[0].dtype if all(fits(parameter, parameters[0]) for parameter in parameters) else None
            self._known = addresses, dtype, dtype and _collect(rssm, actor, dtype)
        return self._known[1] == encoded.dtype

    def __call__(
        self,
        encoded: Tensor,
        previous_action: Tensor,
        is_init: Tensor,
        belief: Tensor,
        state: Tensor,
        noise: Tensor,
        action_noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, E]``, ``[N, A]``, ``[N, 1]``, ``[N, D]``, ``[N, S, K]`` and noise to belief, state and action."""
        (rssm, actor), dtype = self._of, encoded.dtype
        inputs = {
            "encoded": encoded,
            "previous_action": previous_action,
            "kept": ~is_init,
            "belief": belief,
            "state": state,
            "noise": noise,
            "action_noise": action_noise,
        }
        outputs = {
            "next_belief": encoded.new_empty(len(encoded), rssm.belief_size),
            "next_state": encoded.new_empty(len(encoded), rssm.stochastic, rssm.classes),
            "action": encoded.new_empty(len(encoded), actor.space.size),
        }
        tensors = {name: x.to(dtype).contiguous() for name, x in inputs.items()} | outputs
        arguments = c.ActArguments.from_buffer_copy(self._known[2])  # another thread may be in a call of its own
        arguments.rows, arguments.threads = len(encoded), torch.get_num_threads()
        c.fill(arguments, dtype, tensors)
        call("act", dtype, arguments)
        return tuple(outputs.values())


def _collect(rssm: RSSM, actor: Actor, dtype: torch.dtype) -> c.ActArguments:
    """All but the rows: views of the parameters, none of which is cast, so that nothing else must be kept alive."""
    core = rssm.core
    own = core.belief_size // core.blocks
    mix_own, mix_recurrent, mix_action = core.mix.weight.split([own, 2 * core.hidden, core.hidden], 1)
    belief_in, state_in, action_in, posterior = (
        CastLayer.of(layer, dtype) for layer in (core.belief_in, core.state_in, core.action_in, rssm.posterior)
    )
    weights = StepWeights(
        *belief_in,
        *state_in,
        mix_own,
        mix_recurrent,
        core.mix_norm.norm.weight,
        core.gates.weight,
        core.gates.bias,
        *(posterior.weight[:, : rssm.belief_size], posterior.scale),
        *(rssm.posterior_logits.weight, rssm.posterior_logits.bias),
    )
    arguments = c.ActArguments(
        size=sizes_of(rssm),
        encoded_size=posterior.weight.shape[1] - rssm.belief_size,
        unimix=rssm.unimix,
        core=core_of(weights, shared=True),
        actor=actor_weights(actor, dtype)[0],
        action_in=layer_of(action_in),
        posterior=layer_of(posterior),
        mix_action=c.Source.of(mix_action, dtype, shared=True),
        posterior_logits=c.Source.of(rssm.posterior_logits.weight.t(), dtype),
    )
    c.fill(arguments, dtype, {"mix_bias": core.mix.bias, "posterior_logits_bias": rssm.posterior_logits.bias})
    return arguments
