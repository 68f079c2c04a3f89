"""The loss of the world model: KL of the latents, reconstruction, reward and continuation."""

from collections.abc import Callable, Mapping

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from dreamer_torchrl.modules.actor import ActionSpace
from dreamer_torchrl.modules.decoder import ReconstructionCost, reconstruction_key
from dreamer_torchrl.modules.distributions import BernoulliDist
from dreamer_torchrl.modules.heads import Cost, TwoHotCost
from dreamer_torchrl.modules.latents import Latent
from dreamer_torchrl.modules.spaces import Space, key_name
from dreamer_torchrl.objectives.batch import split_context
from dreamer_torchrl.objectives.common import StepLoss, entries
from dreamer_torchrl.objectives.returns import Gather, whole

SCALES = {"reconstruction": 1.0, "reward": 1.0, "continue": 1.0, "dynamics": 1.0, "representation": 0.1}


def kl(
    latent: Latent, posterior: Tensor, prior: Tensor, free_nats: float, average: bool = False, gather: Gather = whole
) -> tuple[Tensor, Tensor]:
    """Dynamics and representation loss of each step ``[...]``, free nats taken of the sum over variables.

    With ``average`` free nats are taken of the mean over steps, as in DreamerV1 and V2; all steps have that loss.
    """
    losses = latent.kl(posterior, prior)
    if not average:
        return tuple(each.clamp_min(free_nats) for each in losses)
    means = [each.mean() for each in losses]
    above = [gather(mean.detach()[None]).mean() >= free_nats for mean in means]  # of the whole batch
    means = [mean.where(more, free_nats) for mean, more in zip(means, above, strict=True)]
    return tuple(mean.expand_as(each) for mean, each in zip(means, losses, strict=True))


class WorldModelLoss(StepLoss):
    """Train encoder, RSSM, decoder, reward and continue heads on recorded steps.

    The decoder may predict some of the observation keys, or none: then there is no ``loss_reconstruction``.

    Takes a batch ``[B, context + T]`` of steps and gives, beside the losses, the data ``[B, T]`` on which `ActorLoss`
    and `ValueLoss` go on: the steps with ``belief``, ``state`` and ``features``, whose gradient reaches back into the
    model. Importance weights of a prioritized sampler, ``priority_weight`` ``[B, context + T]``, are optional.

    Args:
        encoder, dynamics, decoder, reward, continuation: `Encoder`, `ObserveSequence`, `Decoder` and heads as modules.
        spaces: what each observation key holds.
        latent: the kind of stochastic state, which has the KL (``agent.rssm.latent``).
        context: leading steps that only give the start latent, as stored with them; 0 starts from zeros.
        free_nats: below this KL there is no gradient; of each step, or with ``free_average`` of the mean over steps.
        horizon: folded into the continue target if ``discount_in_continue`` (official ``contdisc``).
        reward_grad, continue_grad: whether the losses of these heads have a gradient for the latents.
        scales: in place of some of ``SCALES``.
        priorities: write the loss of each step, ``priority`` ``[B, T]``, into the data, for a prioritized sampler.
        stored_latents: with context, whether sequences start from the latents stored there, or from zeros.
        reward_cost: loss of the reward head (`Head.cost`); two-hot if left out.
        reconstruction_cost: from space, prediction and observation to a loss; squared errors if left out.
        reward_tanh: train the reward head on the hyperbolic tangent of rewards, as DreamerV2 does for Atari.

    Example:
        >>> from dreamer_torchrl import Learner, build_agent
        >>> from dreamer_torchrl.learners.learner import example_batch
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> loss = Learner(agent).world_model_loss  # or from its parts: see docs/parts.md
        >>> losses, data = loss(example_batch(agent, batch=2, length=4))
        >>> data.shape, data["features"].shape
        (torch.Size([2, 4]), torch.Size([2, 4, 320]))
    """

    class _AcceptedKeys(
        entries(
            "reward terminated is_init belief state features prior_logits posterior_logits reward_logits "
            "predicted_reward continue_logits priority priority_weight"
        )
    ): ...

    default_keys = _AcceptedKeys
    gather: Gather = staticmethod(whole)

    def __init__(
        self,
        encoder: TensorDictModule,
        dynamics: TensorDictModule,
        decoder: TensorDictModule,
        reward: TensorDictModule,
        continuation: TensorDictModule,
        spaces: Mapping[NestedKey, Space],
        action_space: ActionSpace,
        latent: Latent,
        *,
        context: int = 1,
        free_nats: float = 1.0,
        horizon: float = 333,
        discount_in_continue: bool = True,
        reward_grad: bool = True,
        scales: Mapping[str, float] | None = None,
        priorities: bool = False,
        free_average: bool = False,
        stored_latents: bool = True,
        reward_cost: Cost | None = None,
        reconstruction_cost: Callable[[Space, Tensor, Tensor], Tensor] | None = None,
        reward_tanh: bool = False,
        continue_grad: bool = True,
    ):
        super().__init__()
        self.encoder, self.dynamics, self.decoder = encoder, dynamics, decoder
        self.reward, self.continuation = reward, continuation
        self.spaces, self.action_space, self.context = dict(spaces), action_space, context
        self.decoded = {key: space for key, space in spaces.items() if reconstruction_key(key) in decoder.out_keys}
        self.latent, self.free_nats, self.priorities = latent, free_nats, priorities
        self.reward_grad, self.continue_grad = reward_grad, continue_grad
        self.continue_target = 1 - 1 / horizon if discount_in_continue else 1.0
        self.scales = {**SCALES, **(scales or {})}
        if unknown := self.scales.keys() - SCALES.keys():
            raise ValueError(f"Unknown loss scales {sorted(unknown)}: there are {', '.join(SCALES)}.")
        self.free_average, self.stored_latents, self.reward_tanh = free_average, stored_latents, reward_tanh
        self.reward_cost = TwoHotCost() if reward_cost is None else reward_cost
        self.reconstruction_cost = ReconstructionCost() if reconstruction_cost is None else reconstruction_cost

    @property
    def in_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        latents = [keys.belief, keys.state] if self.context and self.stored_latents else []
        return [*self.spaces, *self.action_space.keys, keys.is_init, keys.reward, keys.terminated, *latents]

    @property
    def out_keys(self) -> list[str]:
        return [f"loss_{term}" for term in SCALES if self.decoded or term != "reconstruction"]

    def forward(self, batch: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        keys = self.tensor_keys
        self.check(batch)
        stored = (keys.belief, keys.state) if self.stored_latents else None
        data = split_context(batch, self.context, self.action_space, stored)
        self.encoder(data)
        self.dynamics(data)
        posterior, prior = data.get(keys.posterior_logits), data.get(keys.prior_logits)
        self.decoder(data)
        for head, with_gradient in ((self.reward, self.reward_grad), (self.continuation, self.continue_grad)):
            seen = data if with_gradient else data.copy().set(keys.features, data.get(keys.features).detach())
            data.update(head(seen).select(*head.out_keys))
        # Losses, [B, T] each
        dynamics, representation = kl(self.latent, posterior, prior, self.free_nats, self.free_average, self.gather)
        reconstruction = {
            key: self.reconstruction_cost(space, data.get(reconstruction_key(key)), data.get(key))
            for key, space in self.decoded.items()
        }
        rewards = data.get(keys.reward).tanh() if self.reward_tanh else data.get(keys.reward)
        reward = self.reward_cost(data.get(keys.reward_logits), rewards)
        target = (~data.get(keys.terminated)).to(reward.dtype) * self.continue_target
        terms = {
            "dynamics": dynamics,
            "representation": representation,
            **({"reconstruction": sum(reconstruction.values())} if reconstruction else {}),
            "reward": reward,
            "continue": -BernoulliDist(data.get(keys.continue_logits)).log_prob(target),
        }
        losses = {f"loss_{term}": self.mean(value, data) * self.scales[term] for term, value in terms.items()}
        if self.priorities:
            data.set(keys.priority, sum(self.scales[term] * value.detach() for term, value in terms.items()))
        with torch.no_grad():
            metrics = {f"reconstruction/{key_name(key)}": value.mean() for key, value in reconstruction.items()}
            metrics["prior_entropy"] = self.latent.entropy(prior).mean()
            metrics["posterior_entropy"] = self.latent.entropy(posterior).mean()
            metrics["reward_error"] = (data.get(keys.predicted_reward) - rewards).square().mean()
            metrics["reward_variance"] = rewards.var(correction=0)
            metrics["continue_error"] = (data.get(keys.continue_logits).sigmoid() - target).square().mean()
            metrics["continue_variance"] = target.var(correction=0)
        return TensorDict({**losses, **metrics}), data
