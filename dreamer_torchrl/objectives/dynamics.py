"""The loss of the actor in DreamerV1 and V2: gradients through imagined dynamics, REINFORCE, or a mix of both."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch.nn import functional as F

from dreamer_torchrl.keys import MASK
from dreamer_torchrl.objectives.actor_loss import imagined, randomness
from dreamer_torchrl.objectives.batch import check_keys
from dreamer_torchrl.objectives.common import BorrowingLoss, entries
from dreamer_torchrl.objectives.returns import RewardNormalizer, lambda_return


class DynamicsActorLoss(BorrowingLoss):
    """Imagine from every posterior state, estimate the returns, and maximize them.

    Rewards, values and returns belong to states: the value of a state includes its own reward. An action is judged by
    the return of the state that it leads to. Like `ActorLoss` it takes ``belief`` and ``state`` ``[...]`` and writes
    the nested ``imagination`` that `ValueLoss` needs. Only the actor is to be trained by it: take the gradient of its
    parameters alone.

    Args:
        imagine: an `ImagineRollout` as module, with ``gradient`` unless ``mix`` is 0.
        actor: ``features`` to a distribution over flat actions (`Actor.probabilistic_module`).
        reward, continuation, value: heads on ``features``.
        slow_value: the target critic; given, it replaces the value in returns and advantages.
        mix: share of the gradient through the dynamics; the rest is REINFORCE with the value as baseline.
        start: whether the start is among the imagined states (DreamerV2), or only those after it (V1).
        true_start: whether the discount of the start is the recorded one; needs ``terminated``.
        last_start: whether the last steps of sequences ``[B, T]`` are starts, too (not where V1 has a continue head).
        horizon: gamma is 1 - 1 / horizon, and 1 where the continue head has it (``discount_in_continue``).
        normalizer: scale of the rewards.
    """

    class _AcceptedKeys(
        entries(
            "belief state imagination features action predicted_reward continuation state_value terminated "
            "lambda_target discount_weight priority_weight"
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
        mix: float = 1.0,
        start: bool = True,
        true_start: bool = True,
        last_start: bool = True,
        horizon: float = 100,
        discount_in_continue: bool = True,
        return_lambda: float = 0.95,
        entropy_scale: float = 0.0,
        scale: float = 1.0,
        normalizer: RewardNormalizer | None = None,
    ):
        super().__init__()
        if not 0 <= mix <= 1:
            raise ValueError(f"mix={mix} is impossible: give a share from 0 (REINFORCE) to 1 (dynamics).")
        self.actor = actor
        self.networks = {"imagine": imagine, "reward": reward, "continuation": continuation}
        self.networks["value"] = value if slow_value is None else slow_value
        self.mix, self.start, self.true_start, self.last_start = mix, start, start and true_start, last_start
        self.true_discount = 1 - 1 / horizon
        self.gamma = 1.0 if discount_in_continue else self.true_discount
        self.return_lambda, self.entropy_scale, self.scale = return_lambda, entropy_scale, scale
        self.normalizer = RewardNormalizer() if normalizer is None else normalizer

    @property
    def in_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        masks = [MASK] if MASK in self.actor.in_keys else []
        return [keys.belief, keys.state, *masks, *([keys.terminated] if self.true_start else [])]

    @property
    def out_keys(self) -> list[str]:
        return ["loss_actor"]

    def forward(self, tensordict: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        keys = self.tensor_keys
        check_keys(tensordict, self.in_keys, type(self).__name__)
        # Imagination; s_h is left by the action a_h, h = 0 ... H - 1
        rollout = self.networks["imagine"](tensordict.copy())
        imagination = imagined(rollout, keys.features, keys.action, *self.actor.in_keys)
        features, action = imagination.get(keys.features), imagination.get(keys.action)  # [..., H + 1, F or A]
        for name in ("reward", "continuation", "value"):
            self.networks[name](imagination)
        reward = self.normalizer(imagination.get(keys.predicted_reward).squeeze(-1))  # [..., H + 1]
        discount = self.gamma * imagination.get(keys.continuation).squeeze(-1)  # [..., H + 1]
        value = imagination.get(keys.state_value).squeeze(-1)  # [..., H + 1]
        if self.true_start:
            recorded = self.true_discount * (~tensordict.get(keys.terminated)).to(discount.dtype)  # [..., 1]
            discount = torch.cat([recorded, discount[..., 1:]], -1)
        # Returns of the states, without the last
        first = 0 if self.start else 1
        r, d, v = reward[..., first:], discount[..., first:], value[..., first:]  # [..., N]
        returns = lambda_return(r[..., :-1], v[..., 1:], d[..., :-1], self.return_lambda)  # [..., N - 1]
        weight = F.pad(d[..., :-1], (1, 0), value=1.0).cumprod(-1).detach()  # [..., N]
        if not self.last_start:
            steps = weight.shape[1]
            weight = F.pad(weight[:, :-1], (0, 0, 0, 1)) * steps / (steps - 1)  # means are of the others
        # Objective of the actions a_0 ... a_(H - 2), which lead to s_1 ... s_(H - 1)
        count = features.shape[-2] - 2
        judged = returns[..., -count:]  # [..., H - 1]
        objective = self.mix * judged
        metrics = {}
        if self.mix < 1 or self.entropy_scale:
            inputs = {key: imagination.get(key)[..., :count, :].detach() for key in self.actor.in_keys}
            policy = self.actor.get_dist(TensorDict(inputs))
            chosen = action[..., :count, :] if self.mix else action[..., :count, :].detach()
            advantage = (judged - value[..., :count]).detach()
            if self.mix < 1:
                objective = objective + (1 - self.mix) * policy.log_prob(chosen) * advantage
            entropy = policy.entropy()  # [..., H - 1]
            objective = objective + self.entropy_scale * entropy
            metrics = {"entropy": entropy.mean(), "advantage_mean": advantage.mean(), "advantage_std": advantage.std()}
            metrics |= randomness(policy, metrics["entropy"])
        loss = self.mean(-weight[..., :count] * objective, tensordict) * self.scale
        # Critic's data
        seen = TensorDict({keys.features: features[..., first:, :].detach()}, batch_size=weight.shape)
        seen.set(keys.lambda_target, F.pad(returns.detach(), (0, 1)).unsqueeze(-1))  # no return of the last state
        seen.set(keys.discount_weight, weight.unsqueeze(-1))
        metrics |= {
            "imagined_reward": reward.mean(),
            "imagined_continuation": imagination.get(keys.continuation).mean(),
            "imagined_value": value.mean(),
            "discount_weight": weight.mean(),
            "return_mean": returns.mean(),
            "return_min": returns.min(),
            "return_max": returns.max(),
        }
        metrics = {key: metric.detach() for key, metric in metrics.items()}
        return TensorDict({"loss_actor": loss, **metrics}), tensordict.copy().set(keys.imagination, seen)
