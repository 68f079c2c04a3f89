"""The recurrent state-space model, one step at a time; `rollout.py` runs the same over whole sequences and rollouts."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.latents import CategoricalLatent, Latent
from dreamer_torchrl.modules.layers import MLP, BlockLinear, HiddenLayer, Layers, NormSilu
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

MakeCore = Callable[[int, int, int, int], nn.Module]  # sizes of belief, state, action and hidden layers


class BlockGRU(nn.Module):
    """The recurrence: a GRU whose matrices are block diagonal, fed by all of belief, state and action.

    Example:
        >>> core = BlockGRU(belief_size=16, state_size=6, action_size=2, hidden=8, blocks=4)
        >>> core(torch.zeros(5, 16), torch.zeros(5, 6), torch.zeros(5, 2)).shape
        torch.Size([5, 16])
    """

    def __init__(self, belief_size: int, state_size: int, action_size: int, hidden: int, blocks: int):
        super().__init__()
        self.belief_size, self.hidden, self.blocks = belief_size, hidden, blocks
        self.belief_in = HiddenLayer(belief_size, hidden)
        self.state_in = HiddenLayer(state_size, hidden)
        self.action_in = HiddenLayer(action_size, hidden)
        self.mix = BlockLinear(belief_size + blocks * 3 * hidden, belief_size, blocks)
        self.mix_norm = NormSilu(belief_size)
        self.gates = BlockLinear(belief_size, 3 * belief_size, blocks)

    def forward(self, belief: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """``[..., D]``, ``[..., S*K]``, ``[..., A]`` to the next belief ``[..., D]``."""
        inputs = torch.cat([self.belief_in(belief), self.state_in(state), self.action_in(bounded(action))], -1)
        own = belief.unflatten(-1, (self.blocks, -1))  # [..., g, D / g]
        shared = inputs.unsqueeze(-2).expand(*own.shape[:-1], -1)  # [..., g, 3 hidden], the same for each block
        mixed = self.mix_norm(self.mix(torch.cat([own, shared], -1).flatten(-2)))
        return gru_update(self.gates(mixed), belief, self.blocks)


class RSSM(nn.Module, AsTensorDictModule):
    """Belief ``[..., D]`` and state ``[..., S, K]`` with their prior and posterior.

    ``forward`` is an observed step, `imagine` one without observation. Noise is ``[..., S]``, drawn if left out.

    Args:
        core: makes the recurrence from the sizes of belief, state, action and hidden layers; `BlockGRU` if left out.
        latent: kind of stochastic state; categorical, of ``stochastic``, ``classes`` and ``unimix``, if left out.
        layers: what the networks of prior and posterior are made of; the prior has ``prior_layers`` hidden ones.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> belief, state = rssm.initial(5)
        >>> belief, state, logits = rssm(torch.ones(5, 6), torch.zeros(5, 2), torch.ones(5, 1).bool(), belief, state)
        >>> belief.shape, state.shape, state.sum(-1).allclose(torch.ones(5, 4))
        (torch.Size([5, 16]), torch.Size([5, 4, 3]), True)
    """

    in_keys = ("encoded_latents", "previous_action", "is_init", "belief", "state")
    out_keys = ("belief", "state", "posterior_logits")

    def __init__(
        self,
        action_size: int,
        encoded_size: int,
        belief_size: int = 512,
        hidden: int = 64,
        stochastic: int = 32,
        classes: int = 4,
        blocks: int = 8,
        unimix: float = 0.01,
        *,
        core: MakeCore | None = None,
        latent: Latent | None = None,
        layers: Layers = Layers(),  # noqa: B008
        prior_layers: int = 2,
    ):
        super().__init__()
        self.latent = latent = CategoricalLatent(stochastic, classes, unimix) if latent is None else latent
        self.belief_size, self.stochastic, self.classes, self.unimix = belief_size, stochastic, classes, unimix
        self.state_size, self.feature_size = latent.size, belief_size + latent.size
        core = partial(BlockGRU, blocks=blocks) if core is None else core
        self.core = core(belief_size, self.state_size, action_size, hidden)
        self.posterior = layers.hidden(belief_size + encoded_size, hidden)
        self.posterior_logits = layers.linear(hidden, latent.parameters, 1.0)
        self.prior = MLP(belief_size, hidden, prior_layers, layers.hidden)
        self.prior_logits = layers.linear(hidden, latent.parameters, 1.0)

    @property
    def splits(self) -> bool:
        """Whether the fast loops can take it apart (`SplitRSSM`): they know one core, latent and kind of layers."""
        kinds = type(self.core) is BlockGRU, type(self.latent) is CategoricalLatent
        return all(kinds) and all(isinstance(layer, HiddenLayer) for layer in (self.posterior, *self.prior))

    def initial(self, *batch: int) -> tuple[Tensor, Tensor]:
        """The belief and state with which every episode starts: zeros."""
        like = self.prior_logits.bias
        return like.new_zeros(*batch, self.belief_size), like.new_zeros(*batch, *self.latent.shape)

    def forward(
        self,
        encoded: Tensor,
        previous_action: Tensor,
        is_init: Tensor,
        belief: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Observe: ``[..., E]``, ``[..., A]``, ``[..., 1]`` and latents to belief, state, posterior logits."""
        keep = (~is_init).to(encoded.dtype)  # [..., 1]
        belief, state = belief.to(encoded.dtype) * keep, state.to(encoded.dtype).flatten(-2) * keep
        belief = self.core(belief, state, previous_action.to(encoded.dtype) * keep)
        logits = self.latent.as_state(self.posterior_logits(self.posterior(torch.cat([belief, encoded], -1))))
        return belief, self.latent.sample(logits, noise), logits

    def imagine(
        self, belief: Tensor, state: Tensor, action: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step without observation: latents and ``[..., A]`` to belief, state, prior logits."""
        belief = self.core(belief, state.to(belief.dtype).flatten(-2), action.to(belief.dtype))
        logits = self.prior_from(belief)
        return belief, self.latent.sample(logits, noise), logits

    def act(self, actor: Actor, *inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Observe a step and draw an action: what `forward` takes and the actor's noise to belief, state, action."""
        *observed, action_noise = inputs
        belief, state, _ = self(*observed)
        return belief, state, actor.act(self.latent.features(belief, state), action_noise, mask)

    def one_hot(self, state: Tensor) -> Tensor:
        """A state as the replay stores it, ``[..., S]``, or as networks take it, to ``[..., S, K]``."""
        return self.latent.unpack(state, self.prior_logits.bias.dtype)

    def prior_from(self, belief: Tensor) -> Tensor:
        return self.latent.as_state(self.prior_logits(self.prior(belief)))


class PriorStep(nn.Module, AsTensorDictModule):
    """One imagined step under TorchRL's key names: a transition for its ``DreamerEnv`` and its world-model wrappers.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> transition = PriorStep(rssm).tensordict_module()
        >>> transition.in_keys, transition.out_keys
        (['state', 'belief', 'action'], ['prior_logits', 'state', 'belief'])
    """

    in_keys = ("state", "belief", "action")
    out_keys = ("prior_logits", "state", "belief")

    def __init__(self, rssm: RSSM):
        super().__init__()
        self.rssm = rssm

    def forward(self, state: Tensor, belief: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        belief, state, logits = self.rssm.imagine(belief, state, action)
        return logits, state, belief


def bounded(action: Tensor) -> Tensor:
    """Divide by ``max(1, |a|)``; the gradient does not see the divisor."""
    return action / action.detach().abs().clamp_min(1.0)


def gru_update(gates: Tensor, belief: Tensor, blocks: int) -> Tensor:
    """Mix candidate and old belief; each block of ``gates`` ``[..., 3 D]`` holds its reset, candidate and update."""
    reset, candidate, update = (part.flatten(-2) for part in gates.unflatten(-1, (blocks, 3, -1)).unbind(-2))
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update - 1)  # starts by remembering
    return torch.lerp(belief, candidate, update)
