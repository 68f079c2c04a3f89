"""What the actor learns from: returns of the dreams that start at every step of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.objectives import LossModule

from dreamer_torchrl.objectives.batch import check_keys
from dreamer_torchrl.objectives.returns import ReturnNormalizer, lambda_return


def reinforce_loss(
    log_prob: Tensor, advantage: Tensor, entropy: Tensor, weight: Tensor, entropy_scale: float
) -> Tensor:
    """Raise the probability of what turned out better than expected, and stay curious: ``[...]`` each.

    The gradient flows through ``log_prob`` and ``entropy`` alone.
    """
    return -weight.detach() * (log_prob * advantage.detach() + entropy_scale * entropy)


class ActorLoss(LossModule):
    """Dream from every posterior state, judge the dreams, reinforce the actor.

    Takes data with ``belief`` and ``state`` ``[...]`` and writes into a copy of it the nested ``imagination``
    ``[..., H + 1]`` (features, action, continuation, value, ...), of which `ValueLoss` learns, and ``bootstrap``
    ``[..., 1]``, the imagined return of each step.

    Args:
        imagine: an `ImagineRollout` as module.
        actor: ``features`` to a distribution over flat actions (`Actor.probabilistic_module`).
        reward, continuation, value: heads on ``features``.
        slow_value: the slow critic's head; given, it replaces the value in returns and advantages (``slowtar``).
        horizon: discounts here only if it is not already folded into the continue head (``discount_in_continue``).
        return_lambda: mix of n-step returns.
        entropy_scale: weight of the actor's entropy.
        scale: weight of the loss.
        normalizer: running scale of the returns.

    Example:
        >>> from dreamer_torchrl.modules import ImagineRollout
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), "nano")
        >>> loss = ActorLoss(
        ...     ImagineRollout(agent.rssm, agent.actor, length=5).tensordict_module(),
        ...     agent.actor.probabilistic_module(),
        ...     agent.reward.tensordict_module(out_keys=["reward_logits", "predicted_reward"]),
        ...     agent.continuation.tensordict_module(),
        ...     agent.value.tensordict_module(),
        ... )
        >>> belief, state = agent.rssm.initial(2, 4)
        >>> losses, data = loss(TensorDict(belief=belief, state=state, batch_size=[2, 4]))
        >>> losses["loss_actor"].backward()
        >>> data["imagination", "lambda_target"].shape
        torch.Size([2, 4, 6, 1])
    """

    @dataclass
    class _AcceptedKeys:
        belief: NestedKey = "belief"
        state: NestedKey = "state"
        imagination: NestedKey = "imagination"
        bootstrap: NestedKey = "bootstrap"
        features: NestedKey = "features"
        action: NestedKey = "action"
        predicted_reward: NestedKey = "predicted_reward"
        continuation: NestedKey = "continuation"
        state_value: NestedKey = "state_value"
        lambda_target: NestedKey = "lambda_target"
        discount_weight: NestedKey = "discount_weight"
        action_log_prob: NestedKey = "action_log_prob"
        advantage: NestedKey = "advantage"

    tensor_keys: _AcceptedKeys
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
        # Judges, not pupils: kept out of this loss's parameters.
        self.__dict__.update(imagine=imagine, reward=reward, continuation=continuation, value=value)
        self.__dict__["slow_value"] = slow_value
        self.discount = 1.0 if discount_in_continue else 1 - 1 / horizon
        self.return_lambda, self.entropy_scale, self.scale = return_lambda, entropy_scale, scale
        self.normalizer = ReturnNormalizer() if normalizer is None else normalizer

    @property
    def in_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.belief, self.tensor_keys.state]

    @property
    def out_keys(self) -> list[str]:
        return ["loss_actor"]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Nothing to do: the return is a pure function here."""

    def forward(self, tensordict: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Data ``[...]`` to the loss and the data with its imagination."""
        keys = self.tensor_keys
        check_keys(tensordict, self.in_keys, "ActorLoss")
        dream = self._dream(tensordict)
        reward = dream.get(keys.predicted_reward).squeeze(-1)  # [..., H + 1], as all that follow
        continuation = dream.get(keys.continuation).squeeze(-1)
        value = self._baseline(dream)

        live = self.discount * continuation[..., 1:]
        returns = lambda_return(reward[..., 1:], value[..., 1:], live, self.return_lambda)  # [..., H]
        weight = (self.discount * continuation).cumprod(-1) / self.discount
        if self.training:
            self.normalizer.update(returns)
        advantage = (returns - value[..., :-1]) / self.normalizer.scale

        policy = self.actor.get_dist(dream.select(*self.actor.in_keys))
        log_prob = policy.log_prob(dream.get(keys.action))
        entropy = policy.entropy()[..., :-1]
        loss = reinforce_loss(log_prob[..., :-1], advantage, entropy, weight[..., :-1], self.entropy_scale)

        for key, tensor in ((keys.lambda_target, returns), (keys.advantage, advantage)):
            dream.set(key, torch.nn.functional.pad(tensor, (0, 1)).unsqueeze(-1))  # nothing follows the last step
        dream.set(keys.discount_weight, weight.unsqueeze(-1))
        dream.set(keys.action_log_prob, log_prob.detach().unsqueeze(-1))
        data = tensordict.copy().set(keys.imagination, dream).set(keys.bootstrap, returns[..., :1])
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
        metrics = {key: metric.detach() for key, metric in metrics.items()}
        return TensorDict({"loss_actor": loss.mean() * self.scale, **metrics}), data

    def _dream(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Imagine and let the heads judge; the value keeps its graph, so that `ValueLoss` need not repeat it."""
        keys = self.tensor_keys
        with torch.no_grad():
            rollout = self.imagine(tensordict.copy())
            features, action = rollout.get(keys.features), rollout.get(keys.action)
            dream = TensorDict({keys.features: features, keys.action: action}, batch_size=features.shape[:-1])
            self.reward(dream)
            self.continuation(dream)
        return self.value(dream)

    def _baseline(self, dream: TensorDictBase) -> Tensor:
        key = self.tensor_keys.state_value
        if self.slow_value is None:
            return dream.get(key).detach().squeeze(-1)
        with torch.no_grad():
            return self.slow_value(dream.select(self.tensor_keys.features)).get(key).squeeze(-1)
