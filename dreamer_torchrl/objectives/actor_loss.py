"""The loss of the actor: REINFORCE on imagined rollouts that start at every step of a batch."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.distributions import Distribution

from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.actor import ActionDistribution
from dreamer_torchrl.objectives.batch import check_keys
from dreamer_torchrl.objectives.common import BorrowingLoss, entries
from dreamer_torchrl.objectives.returns import ReturnNormalizer, lambda_return


def imagined(rollout: TensorDictBase, *keys: NestedKey) -> TensorDict:
    """These entries of a rollout, the features first, with its steps ``[..., H + 1]`` as batch dimensions."""
    found = {key: rollout.get(key) for key in keys}
    return TensorDict(found, batch_size=found[keys[0]].shape[:-1])


def randomness(policy: Distribution, entropy: Tensor) -> dict[str, Tensor]:
    """The metric of an entropy between the least, 0, and the largest, 1, where the policy knows them."""
    if not isinstance(policy, ActionDistribution) or policy.entropy_range is None:
        return {}
    low, high = policy.entropy_range
    return {"randomness": (entropy - low) / (high - low or 1.0)}


def reinforce_loss(log_prob: Tensor, advantage: Tensor, entropy: Tensor, weight: Tensor, scale: float) -> Tensor:
    """REINFORCE with ``scale`` times the entropy, ``[...]`` each; only ``log_prob`` and ``entropy`` get a gradient."""
    return -weight.detach() * (log_prob * advantage.detach() + scale * entropy)


class ActorLoss(BorrowingLoss):
    """Imagine from every posterior state, estimate the returns, reinforce the actor.

    Takes data with ``belief`` and ``state`` ``[...]`` and writes into a copy of it the nested ``imagination``
    ``[..., H + 1]`` (features, action, continuation, value, ...), which `ValueLoss` needs, and ``bootstrap``
    ``[..., 1]``, the imagined return of each step. Only the actor is trained; ``to`` moves the other networks as well.

    Args:
        imagine: an `ImagineRollout` as module.
        actor: ``features`` to a distribution over flat actions (`Actor.probabilistic_module`).
        reward, continuation, value: heads on ``features``.
        slow_value: the target critic; given, it replaces the value in returns and advantages (``slowtar``).
        horizon: gamma is 1 - 1 / horizon here, and 1 where the continue head has it (``discount_in_continue``).
        entropy_scale, scale: weights of the actor's entropy and of the loss.

    Example:
        >>> from dreamer_torchrl import Learner, build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> loss = Learner(agent).actor_loss  # or from its parts: see docs/parts.md
        >>> belief, state = agent.rssm.initial(2, 4)
        >>> losses, data = loss(TensorDict(belief=belief, state=state, batch_size=[2, 4]))
        >>> data["imagination", "lambda_target"].shape
        torch.Size([2, 4, 16, 1])
    """

    class _AcceptedKeys(
        entries(
            "belief state imagination bootstrap features action predicted_reward continuation state_value "
            "lambda_target discount_weight action_log_prob advantage priority_weight"
        )
    ): ...

    default_keys = _AcceptedKeys

    def __init__(
        self,
        imagine: TensorDictModule,
        actor: ProbabilisticTensorDictSequential,
        reward: TensorDictModule,
        continuation: TensorDictModule,
        value: TensorDictModule,
        *,
        slow_value: TensorDictModule | None = None,
        horizon: float = 333,
        discount_in_continue: bool = True,
        return_lambda: float = 0.95,
        entropy_scale: float = 3e-4,
        scale: float = 1.0,
        normalizer: ReturnNormalizer | None = None,
    ):
        super().__init__()
        self.actor = actor
        self.networks = {"imagine": imagine, "reward": reward, "continuation": continuation, "value": value}
        if slow_value is not None:
            self.networks["slow_value"] = slow_value
        self.gamma = 1.0 if discount_in_continue else 1 - 1 / horizon
        self.return_lambda, self.entropy_scale, self.scale = return_lambda, entropy_scale, scale
        self.normalizer = ReturnNormalizer() if normalizer is None else normalizer

    @property
    def in_keys(self) -> list[NestedKey]:
        masks = [MASK] if MASK in self.actor.in_keys else []
        return [self.tensor_keys.belief, self.tensor_keys.state, *masks]

    @property
    def out_keys(self) -> list[str]:
        return ["loss_actor"]

    def forward(self, tensordict: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        keys = self.tensor_keys
        check_keys(tensordict, self.in_keys, "ActorLoss")
        # Imagination; the value keeps its graph, so that `ValueLoss` need not repeat it
        with torch.no_grad():
            rollout = self.networks["imagine"](tensordict.copy())
            imagination = imagined(rollout, keys.features, keys.action, *self.actor.in_keys)
            self.networks["reward"](imagination)
            self.networks["continuation"](imagination)
        self.networks["value"](imagination)
        reward = imagination.get(keys.predicted_reward).squeeze(-1)  # [..., H + 1]
        continuation = imagination.get(keys.continuation).squeeze(-1)  # [..., H + 1]
        value = imagination.get(keys.state_value).detach().squeeze(-1)  # [..., H + 1]
        if "slow_value" in self.networks:
            with torch.no_grad():
                slow = self.networks["slow_value"](imagination.select(keys.features))
            value = slow.get(keys.state_value).squeeze(-1)
        # Lambda-return
        discount = self.gamma * continuation[..., 1:]  # [..., H]
        returns = lambda_return(reward[..., 1:], value[..., 1:], discount, self.return_lambda)  # [..., H]
        weight = (self.gamma * continuation).cumprod(-1) / self.gamma  # [..., H + 1]
        if self.training:
            self.normalizer.update(returns)
        advantage = (returns - value[..., :-1]) / self.normalizer.scale  # [..., H]
        # Policy gradient
        policy = self.actor.get_dist(imagination.select(*self.actor.in_keys))
        log_prob = policy.log_prob(imagination.get(keys.action))  # [..., H + 1]
        entropy = policy.entropy()[..., :-1]  # [..., H]
        loss = reinforce_loss(log_prob[..., :-1], advantage, entropy, weight[..., :-1], self.entropy_scale)
        loss = self.mean(loss, tensordict) * self.scale
        # Critic's data
        for key, tensor in ((keys.lambda_target, returns), (keys.advantage, advantage)):
            imagination.set(key, torch.nn.functional.pad(tensor, (0, 1)).unsqueeze(-1))  # no return at the last step
        imagination.set(keys.discount_weight, weight.unsqueeze(-1))
        imagination.set(keys.action_log_prob, log_prob.detach().unsqueeze(-1))
        data = tensordict.copy().set(keys.imagination, imagination).set(keys.bootstrap, returns[..., :1])
        # Metrics
        normalized = (returns - self.normalizer.low) / self.normalizer.scale
        metrics = {
            "entropy": entropy.mean(),
            "advantage_mean": advantage.mean(),
            "advantage_std": advantage.std(),
            "advantage_magnitude": advantage.abs().mean(),
            "imagined_reward": reward.mean(),
            "imagined_continuation": continuation.mean(),
            "imagined_value": value.mean(),
            "discount_weight": weight.mean(),
            "return_mean": normalized.mean(),
            "return_min": normalized.min(),
            "return_max": normalized.max(),
            "return_low": self.normalizer.low.clone(),
            "return_high": self.normalizer.high.clone(),
            "return_scale": self.normalizer.scale,
        }
        metrics |= randomness(policy, metrics["entropy"])
        return TensorDict({"loss_actor": loss, **{key: metric.detach() for key, metric in metrics.items()}}), data
