"""Plan2Explore: an actor and a critic that seek what an ensemble of one-step models cannot predict."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from dreamer_torchrl.learners.learner import Learner
from dreamer_torchrl.modules.ensemble import Disagreement, Ensemble
from dreamer_torchrl.modules.heads import NormalHead, normal_cost
from dreamer_torchrl.modules.layers import Layers, dense_layers
from dreamer_torchrl.modules.rollout import ImagineRollout
from dreamer_torchrl.objectives.common import Behaviour
from dreamer_torchrl.objectives.returns import RewardNormalizer


class Plan2Explore(Behaviour):
    """An exploring behaviour beside that of the task, as one of a learner's ``extra_losses``.

    The ensemble predicts the next state from features and the action that led to them. Where its members disagree,
    imagined steps are rewarded; an actor and a critic like the agent's own learn from that alone, unless
    ``extrinsic_scale`` mixes in the predicted reward. `explorer` acts while a run explores.

    Args:
        models, layers, units, kind: the ensemble's size, and that of its members.
        spread: see `Disagreement`.
        scale, extrinsic_scale: weights of the disagreement and of the reward that the world model predicts.
        reward_momentum: of the `RewardNormalizer` of each of the two.
        target: what is predicted, an entry of an update's data: ``state``, or ``encoded_latents``.
    """

    def __init__(
        self,
        models: int = 10,
        layers: int = 4,
        units: int = 400,
        kind: Layers = dense_layers(),  # noqa: B008
        spread: str = "std",
        scale: float = 1.0,
        target: str = "state",
        extrinsic_scale: float = 0.0,
        reward_momentum: float = 1.0,
    ):
        super().__init__()
        self.models, self.head = models, partial(NormalHead, units=units, layers=layers, kind=kind)
        self.spread, self.target = spread, target
        self.intrinsic = RewardNormalizer(reward_momentum, scale)
        self.extrinsic = RewardNormalizer(reward_momentum, extrinsic_scale)

    def setup(self, learner: Learner) -> None:
        agent, networks = learner.agent, learner.networks
        sizes = {"state": agent.rssm.state_size, "encoded_latents": agent.encoder.out_features}
        if self.target not in sizes:
            raise ValueError(f"target={self.target!r} is unknown: choose one of {', '.join(sizes)}.")
        inputs = agent.rssm.feature_size + agent.action_space.size
        self.ensemble = Ensemble(partial(self.head, inputs, outputs=sizes[self.target]), self.models)
        self.explorer, self.critic = fresh(agent.actor), fresh(agent.value)
        self.to(learner.device)
        gradient, length = learner.imagined_gradient, learner.hyperparameters.imagination_length
        networks = networks._replace(
            imagine=ImagineRollout(agent.rssm, self.explorer, length, gradient, agent.mask).tensordict_module(),
            actor=self.explorer.probabilistic_module(),
            value=self.critic.tensordict_module(),
            reward=self._reward(networks.reward),
        )
        actor_loss, value_loss = learner.make_behaviour(networks, self.critic.cost, replayed=False)
        # The modules are registered as parts of this one already
        object.__setattr__(self, "actor_loss", actor_loss.to(learner.device))
        object.__setattr__(self, "value_loss", value_loss.to(learner.device))
        self.slow_update = learner.make_target_update(self.value_loss)
        self.stages = [
            ("ensemble", self.ensemble_loss),
            ("explorer", partial(self._renamed, self.actor_loss)),
            ("critic", partial(self._renamed, self.value_loss)),
        ]

    def ensemble_loss(self, data: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Negative log-likelihood of what follows, summed over the models; boundaries of episodes are not masked."""
        target = data[self.target].detach()
        target = target.flatten(2) if target.ndim > 3 else target  # [B, T, N]
        predictions = self.ensemble(data["features"][:, :-1].detach(), data["previous_action"][:, :-1])
        loss = normal_cost(predictions, target[:, 1:]).mean((1, 2)).sum()
        return TensorDict({"loss_ensemble": loss}), data

    def get_extra_state(self) -> dict[str, Any]:
        return {"slow_value": self.slow_update.state_dict(), "normalizer": self.actor_loss.normalizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.slow_update.load_state_dict(state["slow_value"])
        self.actor_loss.normalizer.load_state_dict(state["normalizer"])

    def _reward(self, reward: TensorDictModule) -> TensorDictModule:
        disagreement = Disagreement(self.ensemble, self.spread)

        def both(features: Tensor, action: Tensor) -> Tensor:
            found = self.intrinsic(disagreement(features, action))
            if not self.extrinsic.scale:
                return found
            predicted = reward(TensorDict({"features": features}, batch_size=features.shape[:-1]))["predicted_reward"]
            return found + self.extrinsic(predicted)

        return TensorDictModule(both, list(Disagreement.in_keys), list(Disagreement.out_keys))

    @staticmethod
    def _renamed(loss: nn.Module, data: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Losses and metrics under names of their own."""
        found, data = loss(data)
        named = {}
        for key, value in found.items():
            kind, own = ("loss_exploration_", key[5:]) if key.startswith("loss_") else ("exploration/", key)
            named[kind + own] = value
        return TensorDict(named), data


def fresh(module: nn.Module) -> nn.Module:
    """A copy of a network with weights of its own."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return copied
