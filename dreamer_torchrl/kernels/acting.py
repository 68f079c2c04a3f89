"""One step of acting by a kernel, which reads the weights where they are."""

import ctypes

import torch
from torch import Tensor

from dreamer_torchrl.kernels.calls import Collected, call, fits
from dreamer_torchrl.kernels.structures import made, source
from dreamer_torchrl.kernels.weights import actor_fits, actor_of, core_of, layer_of, network_of, sizes_of
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import CastLayer

INPUTS = ("encoded", "previous_action", "kept", "belief", "state", "noise", "action_noise")
OUTPUTS = ("next_belief", "next_state", "action")


class NativeRSSM(RSSM):
    def act(self, actor: Actor, *inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if mask is not None:
            return super().act(actor, *inputs, mask=mask)
        step = vars(self).setdefault("_acting", ActingStep())
        if torch.is_grad_enabled() or not fits(inputs[0]) or not step.takes(self, actor, *inputs[:5]):
            return super().act(actor, *inputs)
        return step(*inputs)


class ActingStep(Collected):
    _of: tuple[RSSM, Actor] | None = None

    def takes(self, rssm: RSSM, actor: Actor, *inputs: Tensor) -> bool:
        """Whether these are as wide as the weights and of their precision: the kernel would read other memory."""
        if self._of is None or self._of[0] is not rssm or self._of[1] is not actor:
            if not (rssm.splits and actor_fits(actor)):
                return False
            width = rssm.posterior.linear.in_features - rssm.belief_size
            self._widths = (width, actor.space.size, 1, rssm.belief_size, rssm.stochastic, rssm.classes)
            modules = [*rssm.modules(), *actor.modules()]
            # Where the parameters are found, as modules may be lent others for a while.
            self._places = [(module._parameters, name) for module in modules for name in module._parameters]
            self._of, self._known = (rssm, actor), ([], None)
        widths = tuple(size for x in inputs for size in x.shape[1:])
        if widths != self._widths or len({len(x) for x in inputs}) != 1:
            return False
        parameters = [parameters[name] for parameters, name in self._places]
        addresses = [parameter.data_ptr() for parameter in parameters]
        if addresses != self._known[0]:
            self._dtype = dtype = parameters[0].dtype
            alike = all(fits(parameter, parameters[0]) for parameter in parameters)
            self._known = addresses, _collect(rssm, actor, dtype) if alike else None
        return self._known[1] is not None and self._dtype == inputs[0].dtype

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (rssm, actor), (encoded, action, is_init, *others) = self._of, inputs
        rows, dtype = len(encoded), encoded.dtype
        shapes = (rssm.belief_size,), (rssm.stochastic, rssm.classes), (actor.space.size,)
        outputs = [encoded.new_empty(rows, *shape) for shape in shapes]
        inputs = [x.to(dtype).contiguous() for x in (encoded, action, ~is_init, *others)]
        tensors = dict(zip(INPUTS + OUTPUTS, inputs + outputs, strict=True))
        call("act", dtype, self._known[1], rows=rows, **tensors)
        return tuple(outputs)


def _collect(rssm: RSSM, actor: Actor, dtype: torch.dtype) -> ctypes.Structure:
    """All but the rows: views of the parameters, none of which is cast, so that nothing else must be kept alive."""
    core, posterior_logits = rssm.core, rssm.posterior_logits
    belief_in, state_in, action_in, posterior = (
        CastLayer.of(layer, dtype) for layer in (core.belief_in, core.state_in, core.action_in, rssm.posterior)
    )
    own = core.belief_size // core.blocks
    own, recurrent, action = core.mix.weight.split([own, 2 * core.hidden, core.hidden], 1)
    mix = own, source(recurrent, dtype, shared=True), core.mix_norm.norm.weight
    return made(
        "ActArguments",
        dtype,
        size=sizes_of(rssm),
        encoded_size=posterior.weight.shape[1] - rssm.belief_size,
        unimix=rssm.unimix,
        core=core_of(belief_in, state_in, *mix, core.gates.weight, core.gates.bias),
        actor=actor_of(actor, dtype),
        action_in=network_of(action_in),
        posterior=network_of(posterior),
        mix_action=layer_of(action.mT, core.mix.bias, shared=True),
        posterior_logits=layer_of(posterior_logits.weight, posterior_logits.bias),
    )
