"""Whole sequences and rollouts of the RSSM, with all that does not depend on the recurrent state taken out of the loop.

What stays inside is in `StepWeights`. Actions, observations, the prior and the noise are handled for all steps at once,
and backwards the gradients of the weights are (`deferred_weights`). The tests compare with the steps of `rssm.py`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.heads import MaskHead
from dreamer_torchrl.modules.latents import CategoricalLatent
from dreamer_torchrl.modules.layers import rms_norm
from dreamer_torchrl.modules.rssm import RSSM
from dreamer_torchrl.modules.split import MatrixInputs, SplitRSSM, StepWeights, deferred_weights, unbind_steps
from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule

LATENTS_BEFORE = (("previous", "belief"), ("previous", "state"))
Policy = Callable[[Tensor, Tensor | None], Tensor]
"""Features ``[N, F]`` and the noise of one step to a flat action ``[N, A]``."""


def observe_step(
    latent: CategoricalLatent, weights: StepWeights, belief: Tensor, state: Tensor, *now: Tensor
) -> tuple[Tensor, ...]:
    """To belief ``[N, D]``, state ``[N, S, K]``, posterior logits, and the inputs of the matrices (`MatrixInputs`).

    The latter have no gradient: detached outside, compiled code would make one of zeros for each.
    """
    kept, action_share, encoded_share, noise = now  # [N, 1], [N, D], [N, hidden], [N, S]
    old_belief, old_state = belief * kept, state.flatten(1) * kept
    belief, recurrent, mixed = weights.next_belief(old_belief, old_state, action_share)
    hidden = torch.addmm(encoded_share, belief, weights.posterior_own.t())
    hidden = F.silu(rms_norm(hidden, weights.posterior_scale))
    logits = latent.as_state(F.linear(hidden, weights.posterior_logits, weights.posterior_logits_bias))
    multiplied = (own.detach() for own in (old_belief, old_state, recurrent, mixed, hidden, belief))
    return belief, latent.sample(logits, noise), logits, *multiplied


def imagine_step(
    split: SplitRSSM, policy: Policy, features: Tensor, noise: Tensor, action_noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    action = policy(features, action_noise)
    belief, state = features.split([split.belief_size, split.latent.size], -1)
    belief, _, _ = split.step.next_belief(belief, state, split.action_share(action))
    return action, belief, split.latent.sample(split.prior_from(belief), noise)


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
    """Run T observed steps from one start, with gradient, to beliefs, states and posterior logits ``[B, T, ...]``.

    Takes ``[B, T, E]``, in whose precision it computes, flat actions that led to each step ``[B, T, A]``, flags
    ``[B, T, 1]``, the start ``[B, D]`` and ``[B, S, K]``, and noise ``[B, T, S]``; ``step`` may be a compiled one.
    """
    if not rssm.splits:
        return observe_each(rssm, encoded, previous_action, is_init, belief, state, noise)
    split = SplitRSSM(rssm, encoded.dtype)
    kept = (~is_init).to(encoded.dtype)  # [B, T, 1]
    action_shares = split.action_share(previous_action * kept)  # [B, T, D]
    encoded_shares = split.encoded_share(encoded)  # [B, T, hidden]
    seen = MatrixInputs([], [], [], [], [], [])
    action_shares, encoded_shares, all_weights = deferred_weights(split.step, action_shares, encoded_shares, seen)
    inputs = unbind_steps((kept, action_shares, encoded_shares, noise))
    belief, state = belief.to(encoded.dtype), state.to(encoded.dtype)
    outputs = []
    for now, weights in zip(inputs, all_weights, strict=True):
        belief, state, logits, *multiplied = step(split.latent, weights, belief, state, *now)
        outputs.append((belief, state, logits))
        for inputs_of_all, own in zip(seen, multiplied, strict=True):
            inputs_of_all.append(own)
    beliefs, states, logits = (torch.stack(parts, 1) for parts in zip(*outputs, strict=True))
    return beliefs, states, logits


@torch.no_grad()
def imagine(
    rssm: RSSM,
    belief: Tensor,
    state: Tensor,
    action: Policy | Tensor,
    noise: Tensor,
    action_noise: Tensor | None = None,
    step: Callable[..., tuple[Tensor, Tensor, Tensor]] = imagine_step,
    first: Policy | None = None,
) -> tuple[Tensor, Tensor]:
    """Imagine H steps on from N starts, without gradient: features ``[N, H + 1, F]`` and flat actions ``[N, H, A]``.

    Takes starts ``[N, D]``, in whose precision it computes, and ``[N, S, K]``, a policy or given flat actions
    ``[N, H, A]``, noise ``[N, H, S]`` and noise for the policy ``[N, H, ...]``; ``step`` may be a compiled one and
    ``first`` another policy for the starts.
    """
    if isinstance(action, Tensor):
        action, action_noise = (lambda _, given: given), action  # known actions come in the place of the noise
    if not rssm.splits:
        return imagine_each(rssm, belief, state, action, noise, action_noise, first)
    split, length = SplitRSSM(rssm, belief.dtype), noise.shape[1]
    # Written in place, row by row: stacking H + 1 steps afterwards would copy everything once more.
    features = belief.new_empty(belief.shape[0], length + 1, rssm.feature_size)
    features[:, 0] = split.latent.features(belief, state.to(belief.dtype))
    actions = []
    for h in range(length):
        own_noise = None if action_noise is None else action_noise[:, h]
        policy = action if h or first is None else first
        chosen, belief, state = step(split, policy, features[:, h], noise[:, h], own_noise)
        actions.append(chosen)
        features[:, h + 1, : rssm.belief_size], features[:, h + 1, rssm.belief_size :] = belief, state.flatten(1)
    return features, torch.stack(actions, 1)


def observe_each(
    rssm: RSSM, encoded: Tensor, previous_action: Tensor, is_init: Tensor, belief: Tensor, state: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `observe` gives, step by step, for an RSSM of any parts."""
    outputs = []
    for *inputs, own_noise in unbind_steps((encoded, previous_action, is_init, noise)):
        belief, state, parameters = rssm(*inputs, belief, state, own_noise)
        outputs.append((belief, state, parameters))
    return tuple(torch.stack(parts, 1) for parts in zip(*outputs, strict=True))


def imagine_each(
    rssm: RSSM,
    belief: Tensor,
    state: Tensor,
    action: Policy,
    noise: Tensor,
    action_noise: Tensor,
    first: Policy | None = None,
) -> tuple[Tensor, Tensor]:
    """What `imagine` gives, step by step and with the gradient of states and actions, for an RSSM of any parts.

    The policy sees features without their gradient.
    """
    features, actions = [rssm.latent.features(belief, state)], []
    for own_noise, own_action_noise in unbind_steps((noise, action_noise)):
        policy = action if actions or first is None else first
        actions.append(policy(features[-1].detach(), own_action_noise))
        belief, state, _ = rssm.imagine(belief, state, actions[-1], own_noise)
        features.append(rssm.latent.features(belief, state))
    return torch.stack(features, 1), torch.stack(actions, 1)


class ObserveSequence(nn.Module, AsTensorDictModule):
    """`observe` as a module, with prior logits and features, from the first of the latents below ``previous``, if any.

    Example:
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> outputs = ObserveSequence(rssm)(torch.ones(5, 7, 6), torch.zeros(5, 7, 2), torch.zeros(5, 7, 1).bool())
        >>> [list(output.shape) for output in outputs]
        [[5, 7, 16], [5, 7, 4, 3], [5, 7, 4, 3], [5, 7, 4, 3], [5, 7, 28]]
    """

    in_keys = ("encoded_latents", "previous_action", "is_init", *LATENTS_BEFORE, ("noise", "posterior"))
    out_keys = ("belief", "state", "posterior_logits", "prior_logits", "features")

    def __init__(self, rssm: RSSM):
        super().__init__()
        self.rssm, self.step = rssm, observe_step

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
            noise = self.rssm.latent.noise(batch, length, device=encoded.device)
        beliefs, states, logits = self.loop(encoded, previous_action, is_init, *start, noise)
        return beliefs, states, logits, self.rssm.prior_from(beliefs), self.rssm.latent.features(beliefs, states)

    def loop(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return observe(self.rssm, *inputs, self.step)


class ImagineRollout(nn.Module, AsTensorDictModule):
    """Imagination under an actor, from every step of a batch; with ``gradient``, that of actions and states flows.

    With a ``mask`` head the policy is masked: at the start by the recorded ``action_mask``, then by the predicted ones.
    The masks are a third output.

    Example:
        >>> from torchrl.data import OneHot
        >>> from dreamer_torchrl.modules.actor import ActionSpace
        >>> rssm = RSSM(action_size=2, encoded_size=6, belief_size=16, hidden=8, stochastic=4, classes=3, blocks=4)
        >>> rollout = ImagineRollout(rssm, Actor(28, ActionSpace(OneHot(2)), units=8), length=3)
        >>> features, action = rollout(*rssm.initial(5, 7))
        >>> features.shape, action.shape
        (torch.Size([5, 7, 4, 28]), torch.Size([5, 7, 4, 2]))
    """

    in_keys = ("belief", "state", ("noise", "prior"), ("noise", "action"))
    out_keys = ("features", "action")

    def __init__(
        self, rssm: RSSM, actor: Actor, length: int = 15, gradient: bool = False, mask: MaskHead | None = None
    ):
        super().__init__()
        self.rssm, self.actor, self.length, self.step = rssm, actor, length, imagine_step
        self.gradient, self.mask = gradient, mask
        if bool(actor.space.masks) != (mask is not None):
            raise ValueError("An actor with action masks, and no other, needs the head: give mask=agent.mask.")
        if mask is not None:
            self.in_keys, self.out_keys = (*self.in_keys, MASK), (*self.out_keys, MASK)

    def forward(
        self,
        belief: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        action_noise: Tensor | None = None,
        action_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Beliefs ``[..., D]``, states or class indices, noise ``[..., H, S]`` and ``[..., H, noise_size]``.

        Gives features ``[..., H + 1, F]`` and flat actions ``[..., H + 1, A]``, of which the last is zero.
        """
        batch = belief.shape[:-1]
        if noise is None:
            noise = self.rssm.latent.noise(*batch, self.length, device=belief.device)
        if action_noise is None:
            action_noise = self.actor.space.noise(*batch, self.length, device=belief.device)
        inputs = [belief.detach(), self.rssm.one_hot(state.detach()), noise, action_noise]
        if self.mask is not None:
            inputs.append(action_mask)
        with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()):
            outputs = self.loop(*(x.reshape(-1, *x.shape[len(batch) :]) for x in inputs))
        return tuple(x.reshape(*batch, *x.shape[1:]) for x in outputs)

    def loop(
        self, belief: Tensor, state: Tensor, noise: Tensor, action_noise: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        policy, first = self._draw if self.gradient else self.actor.act, None
        if self.mask is not None:
            policy, first = self._draw_masked, partial(self._draw, mask=mask)
        inputs = (self.rssm, belief, state, policy, noise, action_noise)
        if self.gradient:
            features, actions = imagine_each(*inputs, first)
        else:
            features, actions = imagine(*inputs, self.step, first)
        outputs = features, F.pad(actions, (0, 0, 0, 1))
        return outputs if self.mask is None else (*outputs, self._masks(features.detach(), mask))

    def _draw(self, features: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.actor.distribution(self.actor(features), mask).rsample(noise)

    def _draw_masked(self, features: Tensor, noise: Tensor) -> Tensor:
        return self._draw(features, noise, self.mask(features)[1])

    def _masks(self, features: Tensor, start: Tensor) -> Tensor:
        """The recorded mask of the start ``[N, n]`` and the predicted ones behind it, ``[N, H + 1, n]``."""
        predicted = self.mask(features[:, 1:])[1]
        return torch.cat([start.bool().unsqueeze(1), predicted], 1)
