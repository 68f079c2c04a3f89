"""Whole sequences and rollouts of the RSSM, with all that does not depend on the recurrent state taken out of the loop.

What is left inside: the belief's and state's share of the recurrence and the belief's share of the posterior. Actions,
observations, the prior and the noise are handled for all steps at once, and backwards the gradients of the weights are.
The tests compare with the steps of `rssm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.kernels.calls import fits
from dreamer_torchrl.kernels.sequence import native_imagine, native_observe
from dreamer_torchrl.kernels.weights import actor_fits
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.at_once import WeightsOfAllSteps
from dreamer_torchrl.modules.layers import rms_norm
from dreamer_torchrl.modules.rssm import RSSM, features_of
from dreamer_torchrl.modules.split import Rows, SplitRSSM
from dreamer_torchrl.modules.tensordict_module import Face

Policy = Callable[[Tensor, Tensor | None], Tensor]
"""Features ``[N, F]`` and the noise of one step to a flat action ``[N, A]``."""


class Seen(NamedTuple):
    """What the matrices of an observed step were multiplied with, a list of T inputs ``[B, ...]`` each."""

    belief: list[Tensor]  # the one before, forgotten at resets
    state: list[Tensor]  # likewise
    recurrent: list[Tensor]
    mixed: list[Tensor]
    hidden: list[Tensor]
    new_belief: list[Tensor]


def observe_step(
    split: SplitRSSM,
    belief: Tensor,
    state: Tensor,
    kept: Tensor,
    action_share: Tensor,
    encoded_share: Tensor,
    noise: Tensor,
) -> tuple[Tensor, ...]:
    """What is left of an observed step inside the loop.

    ``[N, D]``, ``[N, S, K]``, ``[N, 1]``, ``[N, D]``, ``[N, hidden]``, ``[N, S]`` to belief, state and posterior
    logits; after them comes what matrices were multiplied with on the way, in the order of `Seen`.
    """
    old_belief, old_state = belief * kept, state.flatten(1) * kept
    belief, recurrent, mixed = split.next_belief(old_belief, old_state, action_share)
    hidden = torch.addmm(encoded_share, belief, split.posterior_own.t())
    hidden = F.silu(rms_norm(hidden, split.posterior_scale))
    logits = split.rssm.as_state(F.linear(hidden, *split.posterior_logits))
    return belief, split.rssm.sample(logits, noise), logits, old_belief, old_state, recurrent, mixed, hidden


def imagine_step(
    split: SplitRSSM, policy: Policy, features: Tensor, noise: Tensor, action_noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """An imagined step: features ``[N, F]`` and noise ``[N, S]``, ``[N, ...]`` to action, belief and state."""
    rssm = split.rssm
    action = policy(features, action_noise)
    belief, state = features.split([rssm.belief_size, rssm.state_size], -1)
    belief, _, _ = split.next_belief(belief, state, split.action_share(action))
    hidden = belief
    for layer in split.prior:
        hidden = layer(hidden)
    return action, belief, rssm.sample(rssm.as_state(F.linear(hidden, *split.prior_logits)), noise)


def as_given(features: Tensor, action: Tensor | None) -> Tensor:
    """A policy whose actions are known: they come in the place of its noise."""
    return action


def observe(
    rssm: RSSM,
    encoded: Tensor,
    previous_action: Tensor,
    is_init: Tensor,
    belief: Tensor,
    state: Tensor,
    noise: Tensor,
    step: Callable[..., tuple[Tensor, ...]] = observe_step,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run T observed steps from one start, with gradient.

    Args:
        rssm: the model.
        encoded: ``[B, T, E]``; its precision is the one computed in.
        previous_action: flat, ``[B, T, A]``, the action that led to each step.
        is_init: ``[B, T, 1]``, steps at which everything before is forgotten.
        belief, state: start, ``[B, D]`` and ``[B, S, K]``.
        noise: uniforms ``[B, T, S]``.
        step: `observe_step` or a compiled one.

    Returns:
        Beliefs ``[B, T, D]``, states ``[B, T, S, K]``, posterior logits ``[B, T, S, K]``.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> inputs = torch.ones(5, 7, 6), torch.zeros(5, 7, 2), torch.zeros(5, 7, 1).bool()
        >>> beliefs, states, logits = observe(rssm, *inputs, *rssm.initial(5), torch.rand(5, 7, 4))
        >>> beliefs.shape, states.shape
        (torch.Size([5, 7, 16]), torch.Size([5, 7, 4, 3]))
    """
    split = SplitRSSM(rssm, encoded.dtype)
    kept = (~is_init).to(encoded.dtype)  # [B, T, 1]
    action_shares = split.action_share(previous_action * kept)  # [B, T, D]
    encoded_shares = split.encoded_share(encoded)  # [B, T, hidden]
    seen = Seen([], [], [], [], [], [])
    action_shares, encoded_shares, all_rows = weights_at_the_end(split, action_shares, encoded_shares, seen)
    inputs = (kept, action_shares, encoded_shares, noise)
    belief, state = belief.to(encoded.dtype), state.to(encoded.dtype)
    outputs = []
    for now, rows in zip(_steps(inputs), _steps(all_rows), strict=True):
        belief, state, logits, *multiplied = step(split.at(Rows(*rows)), belief, state, *now)
        outputs.append((belief, state, logits))
        for inputs_of_all, own in zip(seen, (*multiplied, belief), strict=True):
            inputs_of_all.append(own.detach())
    beliefs, states, logits = (torch.stack(parts, 1) for parts in zip(*outputs, strict=True))
    return beliefs, states, logits


def weights_at_the_end(
    split: SplitRSSM, action_shares: Tensor, encoded_shares: Tensor, seen: Seen
) -> tuple[Tensor, Tensor, Rows]:
    """Shares ``[B, T, ...]`` and rows ``[B, T, ...]`` whose gradients are also those of the matrices, see `at_once`."""

    def expanded(vector: Tensor) -> Tensor:
        return vector.expand(*action_shares.shape[:2], -1)

    products = WeightsOfAllSteps.apply
    rows = Rows(
        belief_bias=products(expanded(split.belief_in.bias), [seen.belief], split.belief_in.weight.t()),
        state_bias=products(expanded(split.state_in.bias), [seen.state], split.state_in.weight.t()),
        gates_bias=products(expanded(split.gates_bias), [seen.mixed], split.gates),
        logits_bias=products(expanded(split.posterior_logits[1]), [seen.hidden], split.posterior_logits[0].t()),
        belief_scale=expanded(split.belief_in.scale),
        state_scale=expanded(split.state_in.scale),
        mix_scale=expanded(split.mix_scale),
        posterior_scale=expanded(split.posterior_scale),
    )
    action_shares = products(action_shares, [seen.belief, seen.recurrent], split.mix_own, split.mix_recurrent)
    return action_shares, products(encoded_shares, [seen.new_belief], split.posterior_own.t()), rows


def _steps(sequences: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Of ``[B, T, ...]`` each, step by step."""
    return zip(*(sequence.unbind(1) for sequence in sequences), strict=True)


@torch.no_grad()
def imagine(
    rssm: RSSM,
    belief: Tensor,
    state: Tensor,
    action: Policy | Tensor,
    noise: Tensor,
    action_noise: Tensor | None = None,
    step: Callable[..., tuple[Tensor, Tensor, Tensor]] = imagine_step,
) -> tuple[Tensor, Tensor]:
    """Dream H steps on from N starts, without gradient: the actor learns from advantages.

    Args:
        rssm: the model.
        belief, state: starts, ``[N, D]`` and ``[N, S, K]``; the belief's precision is the one computed in.
        action: a policy, or given flat actions ``[N, H, A]``.
        noise: uniforms for the states, ``[N, H, S]``.
        action_noise: noise for the policy, ``[N, H, ...]``.
        step: `imagine_step` or a compiled one.

    Returns:
        Features ``[N, H + 1, F]``, the start first, and the flat actions ``[N, H, A]``.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> features, actions = imagine(rssm, *rssm.initial(5), torch.zeros(5, 3, 2), torch.rand(5, 3, 4))
        >>> features.shape
        torch.Size([5, 4, 28])
    """
    split = SplitRSSM(rssm, belief.dtype)
    length = noise.shape[1]
    if isinstance(action, Tensor):
        action, action_noise = as_given, action
    # Written in place, row by row: stacking H + 1 steps afterwards would copy everything once more.
    features = belief.new_empty(belief.shape[0], length + 1, rssm.feature_size)
    features[:, 0] = features_of(belief, state.to(belief.dtype))
    actions = []
    for h in range(length):
        own_noise = None if action_noise is None else action_noise[:, h]
        chosen, belief, state = step(split, action, features[:, h], noise[:, h], own_noise)
        actions.append(chosen)
        features[:, h + 1, : rssm.belief_size] = belief
        features[:, h + 1, rssm.belief_size :] = state.flatten(1)
    return features, torch.stack(actions, 1)


class ObserveSequence(nn.Module, Face):
    """A whole observed sequence as a module; beside the latents it gives the prior logits and the features.

    Start latents come as ``("previous", "belief")`` and ``("previous", "state")`` of ``[B, T, ...]``: what was known
    one step before each; only the first is used. Without them the sequence starts from nothing.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> outputs = ObserveSequence(rssm)(torch.ones(5, 7, 6), torch.zeros(5, 7, 2), torch.zeros(5, 7, 1).bool())
        >>> [list(output.shape) for output in outputs]
        [[5, 7, 16], [5, 7, 4, 3], [5, 7, 4, 3], [5, 7, 4, 3], [5, 7, 28]]
    """

    in_keys = (
        "encoded_latents",
        "previous_action",
        "is_init",
        ("previous", "belief"),
        ("previous", "state"),
        ("noise", "posterior"),
    )
    out_keys = ("belief", "state", "posterior_logits", "prior_logits", "features")
    native = False  # whether the kernels do the loop where they can: see use_native

    def __init__(self, rssm: RSSM):
        super().__init__()
        self.rssm = rssm
        self.step = observe_step

    def forward(
        self,
        encoded: Tensor,
        previous_action: Tensor,
        is_init: Tensor,
        previous_belief: Tensor | None = None,
        previous_state: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Take ``[B, T, ...]`` each, states as one-hot ``[..., S, K]`` or class indices ``[..., S]``; see `observe`."""
        batch, length = encoded.shape[:2]
        if previous_belief is None or previous_state is None:
            start = self.rssm.initial(batch)
        else:
            start = previous_belief[:, 0], self.rssm.one_hot(previous_state[:, 0])
        if noise is None:
            noise = torch.rand(batch, length, self.rssm.stochastic, device=encoded.device)
        inputs = (encoded, previous_action, is_init, *start, noise)
        if self.native and fits(encoded):
            beliefs, states, logits = native_observe(self.rssm, *inputs)
        else:
            beliefs, states, logits = observe(self.rssm, *inputs, self.step)
        return beliefs, states, logits, self.rssm.prior_from(beliefs), features_of(beliefs, states)


class ImagineRollout(nn.Module, Face):
    """Dreams under an actor, from every step of a batch.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> from torchrl.data import OneHot
        >>> from dreamer_torchrl.modules.actor import ActionSpace
        >>> dream = ImagineRollout(rssm, Actor(28, ActionSpace(OneHot(2)), units=8), length=3)
        >>> features, action = dream(*rssm.initial(5, 7))
        >>> features.shape, action.shape
        (torch.Size([5, 7, 4, 28]), torch.Size([5, 7, 4, 2]))
    """

    in_keys = ("belief", "state", ("noise", "prior"), ("noise", "action"))
    out_keys = ("features", "action")
    native = False  # whether the kernels do the loop where they can: see use_native

    def __init__(self, rssm: RSSM, actor: Actor, length: int = 15):
        super().__init__()
        self.rssm, self.actor, self.length = rssm, actor, length
        self.step = imagine_step

    def forward(
        self, belief: Tensor, state: Tensor, noise: Tensor | None = None, action_noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Dream from beliefs ``[..., D]`` and states ``[..., S, K]`` or class indices ``[..., S]``.

        Noise is ``[..., H, S]`` for the states and ``[..., H, noise_size]`` for the actions. Returns features
        ``[..., H + 1, F]`` and flat actions ``[..., H + 1, A]``; nothing follows the last step, so its action is zero.
        """
        batch = belief.shape[:-1]
        rows = batch.numel()
        if noise is None:
            noise = torch.rand(rows, self.length, self.rssm.stochastic, device=belief.device)
        if action_noise is None:
            action_noise = self.actor.space.noise(rows, self.length, device=belief.device)
        belief = belief.detach().reshape(rows, -1)
        state = self.rssm.one_hot(state.detach()).reshape(rows, self.rssm.stochastic, -1)
        noise, action_noise = noise.reshape(rows, self.length, -1), action_noise.reshape(rows, self.length, -1)
        if self.native and fits(belief) and actor_fits(self.actor):
            features, actions = native_imagine(self.rssm, self.actor, belief, state, noise, action_noise)
        else:
            features, actions = imagine(self.rssm, belief, state, self._act, noise, action_noise, self.step)
            actions = F.pad(actions, (0, 0, 0, 1))
        return features.reshape(*batch, *features.shape[1:]), actions.reshape(*batch, *actions.shape[1:])

    def _act(self, features: Tensor, noise: Tensor | None) -> Tensor:
        return self.actor.distribution(self.actor(features)).sample(noise)
