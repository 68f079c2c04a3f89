"""What the world model learns from: its own surprise, the observation, the reward and whether the episode goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import LossModule

from dreamer_torchrl.modules.actor import ActionSpace
from dreamer_torchrl.modules.decoder import reconstruction_key, reconstruction_loss
from dreamer_torchrl.modules.distributions import Binary, two_hot_bins, two_hot_cross_entropy, unimix_probs
from dreamer_torchrl.modules.spaces import Space, key_name
from dreamer_torchrl.objectives.batch import check_keys, split_context

SCALES = {"reconstruction": 1.0, "reward": 1.0, "continue": 1.0, "dynamics": 1.0, "representation": 0.1}


def kl(posterior: Tensor, prior: Tensor, free_nats: float, unimix: float) -> tuple[Tensor, Tensor]:
    """KL of posterior from prior twice, with the same value and other gradients.

    The first teaches the prior (dynamics), the second the posterior (representation). The state's variables are summed
    before the free nats are taken: logits ``[..., S, K]`` to ``[...]`` each.
    """
    p, q = unimix_probs(posterior, unimix), unimix_probs(prior, unimix)
    log_p, log_q = p.log(), q.log()
    dynamics = (p.detach() * (log_p.detach() - log_q)).sum((-1, -2))
    representation = (p * (log_p - log_q.detach())).sum((-1, -2))
    return dynamics.clamp_min(free_nats), representation.clamp_min(free_nats)


def entropy(logits: Tensor, unimix: float) -> Tensor:
    """Entropy of a state, summed over its variables: ``[..., S, K]`` to ``[...]``."""
    probs = unimix_probs(logits, unimix)
    return -(probs * probs.log()).sum((-1, -2))


class WorldModelLoss(LossModule):
    """Train encoder, RSSM, decoder, reward and continue heads on recorded steps.

    Takes a batch ``[B, context + T]`` of steps and gives, beside the losses, the data ``[B, T]`` on which `ActorLoss`
    and `ValueLoss` go on: the steps with ``belief``, ``state`` and ``features``, whose gradient reaches back into the
    model.

    Args:
        encoder: observation keys to ``encoded_latents``.
        dynamics: an `ObserveSequence` as module.
        decoder: ``features`` to the reconstruction of each key.
        reward: ``features`` to ``reward_logits``.
        continuation: ``features`` to ``continue_logits``.
        spaces: what each observation key holds.
        action_space: turns the recorded action into the flat one.
        context: leading steps that only give the start latent, as stored with them; 0 starts from nothing.
        free_nats, unimix: of the KL terms.
        horizon: folded into the continue target if ``discount_in_continue`` (official ``contdisc``).
        reward_grad: whether the reward's error teaches the latents.
        scales: of ``reconstruction``, ``reward``, ``continue``, ``dynamics``, ``representation``.
        bins: of the reward head.

    Example:
        >>> from dreamer_torchrl.learners.learner import example_batch
        >>> from dreamer_torchrl.modules import ObserveSequence
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> loss = WorldModelLoss(
        ...     agent.encoder.tensordict_module(),
        ...     ObserveSequence(agent.rssm).tensordict_module(),
        ...     agent.decoder.tensordict_module(),
        ...     agent.reward.tensordict_module(out_keys=["reward_logits", "predicted_reward"]),
        ...     agent.continuation.tensordict_module(),
        ...     agent.spaces,
        ...     agent.action_space,
        ... )
        >>> losses, data = loss(example_batch(agent, batch=2, length=4))
        >>> sum(losses[key] for key in loss.out_keys).backward()
        >>> data.shape, data["features"].shape
        (torch.Size([2, 4]), torch.Size([2, 4, 320]))
    """

    @dataclass
    class _AcceptedKeys:
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        is_init: NestedKey = "is_init"
        belief: NestedKey = "belief"
        state: NestedKey = "state"
        features: NestedKey = "features"
        prior_logits: NestedKey = "prior_logits"
        posterior_logits: NestedKey = "posterior_logits"
        reward_logits: NestedKey = "reward_logits"
        continue_logits: NestedKey = "continue_logits"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    native = False  # whether the kernels do what they can: see use_native

    def __init__(
        self,
        encoder: TensorDictModule,
        dynamics: TensorDictModule,
        decoder: TensorDictModule,
        reward: TensorDictModule,
        continuation: TensorDictModule,
        spaces: Mapping[NestedKey, Space],
        action_space: ActionSpace,
        *,
        context: int = 1,
        free_nats: float = 1.0,
        unimix: float = 0.01,
        horizon: float = 333,
        discount_in_continue: bool = True,
        reward_grad: bool = True,
        scales: Mapping[str, float] | None = None,
        bins: int = 255,
    ):
        super().__init__()
        self.encoder, self.dynamics, self.decoder = encoder, dynamics, decoder
        self.reward, self.continuation = reward, continuation
        self.spaces, self.action_space, self.context = dict(spaces), action_space, context
        self.free_nats, self.unimix, self.reward_grad = free_nats, unimix, reward_grad
        self.continue_target = 1 - 1 / horizon if discount_in_continue else 1.0
        self.scales = {**SCALES, **(scales or {})}
        if unknown := self.scales.keys() - SCALES.keys():
            raise ValueError(f"Unknown loss scales {sorted(unknown)}: there are {', '.join(SCALES)}.")
        self.register_buffer("bins", two_hot_bins(bins), persistent=False)

    @property
    def in_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        latents = [keys.belief, keys.state] if self.context else []
        return [*self.spaces, *self.action_space.keys, keys.is_init, keys.reward, keys.terminated, *latents]

    @property
    def out_keys(self) -> list[str]:
        return [f"loss_{term}" for term in SCALES]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Nothing to do: there is no value estimator here."""

    def forward(self, batch: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Steps ``[B, context + T]`` to losses and data ``[B, T]``."""
        keys = self.tensor_keys
        check_keys(batch, self.in_keys, "WorldModelLoss")
        data = split_context(batch, self.context, self.action_space, keys.belief, keys.state)
        self.encoder(data)
        self.dynamics(data)
        self.decoder(data)
        heads = data if self.reward_grad else data.copy().set(keys.features, data.get(keys.features).detach())
        data.update(self.reward(heads).select(*self.reward.out_keys))
        self.continuation(data)

        posterior, prior = data.get(keys.posterior_logits), data.get(keys.prior_logits)
        dynamics, representation = kl(posterior, prior, self.free_nats, self.unimix)  # [B, T]
        reconstruction = {
            key: reconstruction_loss(space, data.get(reconstruction_key(key)), data.get(key))
            for key, space in self.spaces.items()
        }
        reward = two_hot_cross_entropy(
            data.get(keys.reward_logits), self.bins, data.get(keys.reward), native=self.native
        )
        target = (~data.get(keys.terminated)).to(reward.dtype) * self.continue_target
        continues = -Binary(data.get(keys.continue_logits)).log_prob(target)

        terms = {
            "dynamics": dynamics,
            "representation": representation,
            "reconstruction": sum(reconstruction.values()),
            "reward": reward,
            "continue": continues,
        }
        losses = {f"loss_{term}": value.mean() * self.scales[term] for term, value in terms.items()}
        with torch.no_grad():
            metrics = {f"reconstruction/{key_name(key)}": value.mean() for key, value in reconstruction.items()}
            metrics["prior_entropy"] = entropy(prior, self.unimix).mean()
            metrics["posterior_entropy"] = entropy(posterior, self.unimix).mean()
        return TensorDict({**losses, **metrics}), data
