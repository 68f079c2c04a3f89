"""The actor's loss: official numbers, every argument's effect, and that it teaches nobody but the actor."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import Bounded, OneHot, TensorSpec
from torchrl.objectives import SoftUpdate

from dreamer_torchrl.kernels import attach
from dreamer_torchrl.learners.learner import Learner, example_batch
from dreamer_torchrl.modules.actor import ActionDistribution, ActionSpace
from dreamer_torchrl.modules.rollout import ImagineRollout
from dreamer_torchrl.objectives import ActorLoss, ValueLoss
from dreamer_torchrl.objectives.returns import ReturnNormalizer
from tests.objectives.examples import RecordedCritic, golden, part, taught_by, tiny_learner

RETURNS = {"rtol": 1e-4, "atol": 0.1}  # the table's critic predicts millions: numbers near 0 are what is left of those
KINDS: dict[str, TensorSpec] = {"disc": OneHot(4), "cont": Bounded(-1, 1, (3,))}
CASES = [
    pytest.param(kind, contdisc, slowtar, id=f"{kind}_contdisc{contdisc:d}_slowtar{slowtar:d}")
    for kind in KINDS
    for contdisc, slowtar in ((True, False), (False, False), (True, True))
]
ROWS, LENGTH = 6, 4


class Recorded:
    """Modules that answer as the official ones did when the tables were made, and a loss made of them."""

    def __init__(self, kind: str = "disc", slow_target: bool = False, **options: Any):
        self.table = part(golden("tables_losses.npz"), "imag_loss/")
        t = part(self.table, "in/")
        self.space = ActionSpace(KINDS[kind])
        self.action = self.space.flatten({"action": t[f"act_{kind}"]}) if kind == "cont" else one_hot(t["act_disc"])
        outputs = ("pol_logits",) if kind == "disc" else ("pol_mean", "pol_std")
        self.policy = {name: t[name].clone().requires_grad_() for name in outputs}
        self.reward, self.continuation = t["rew"].clone(), t["con"].clone()
        self.critic = RecordedCritic(t["value_logits"])
        value = TensorDictModule(self.critic, ["features"], ["state_value_logits", "state_value"])
        self.value_loss = ValueLoss(value, replay_scale=0)
        SoftUpdate(self.value_loss, tau=0.02)
        slow = self.value_loss.target_value_params["module", "logits"]
        slow.data.copy_(t["slowvalue_logits"].flatten(0, -2))
        self.features = torch.arange(ROWS * (LENGTH + 1)).view(ROWS, LENGTH + 1, 1).float()
        self.loss = ActorLoss(
            TensorDictModule(lambda *_: (self.features, self.action), ["belief", "state"], ["features", "action"]),
            self.actor(),
            TensorDictModule(lambda _: self.reward.unsqueeze(-1), ["features"], ["predicted_reward"]),
            TensorDictModule(lambda _: self.continuation.unsqueeze(-1), ["features"], ["continuation"]),
            value,
            slow_value=self.value_loss.slow_value() if slow_target else None,
            **options,
        )
        self.loss.normalizer.low.copy_(t["retnorm_lo_hi"][0])
        self.loss.normalizer.high.copy_(t["retnorm_lo_hi"][1])

    def actor(self) -> ProbabilisticTensorDictSequential:
        return ProbabilisticTensorDictSequential(
            TensorDictModule(lambda _: self.parameters(), ["features"], ["action_parameters"]),
            ProbabilisticTensorDictModule(
                in_keys={"parameters": "action_parameters"},
                out_keys=["action"],
                distribution_class=ActionDistribution,
                distribution_kwargs={"space": self.space},
            ),
        )

    def parameters(self) -> Tensor:
        """What the actor's network must have said for its distribution to have the recorded parameters."""
        if "pol_logits" in self.policy:
            return self.policy["pol_logits"]
        return torch.cat([self.policy["pol_mean"].atanh(), ((self.policy["pol_std"] - 0.1) / 0.9).logit() - 2], -1)

    def run(self) -> tuple[TensorDict, TensorDict]:
        return self.loss(TensorDict({"belief": torch.zeros(ROWS, 1), "state": torch.zeros(ROWS, 1, 1)}, [ROWS]))


def one_hot(index: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(index.long(), 4).float()


@pytest.mark.parametrize(("kind", "contdisc", "slowtar"), CASES)
def test_official_imagination_losses(kind: str, contdisc: bool, slowtar: bool) -> None:
    """Both losses, returns, normalizer and gradients, from the loss modules."""
    recorded = Recorded(kind, slowtar, discount_in_continue=contdisc)
    expected = part(recorded.table, f"{kind}_contdisc{contdisc:d}_slowtar{slowtar:d}/")
    losses, data = recorded.run()
    losses.update(recorded.value_loss(data)[0])
    dream, normalizer = data["imagination"], recorded.loss.normalizer
    assert_close(dream["lambda_target"][:, :-1, 0], expected["ret"], **RETURNS)
    assert_close(data["bootstrap"], expected["ret"][:, :1], **RETURNS)
    found = torch.stack([normalizer.low, normalizer.high])
    assert_close(found, expected["retnorm_lo_hi_after"], **RETURNS)
    assert_close(losses["loss_actor"], expected["policy"].mean(), rtol=1e-4, atol=1e-5)
    assert_close(losses["loss_value"], expected["value"].mean(), rtol=1e-4, atol=1e-5)
    (losses["loss_actor"] + losses["loss_value"]).backward()
    for name, output in recorded.policy.items():
        if f"grad_{name}" in expected:
            assert_close(output.grad, expected[f"grad_{name}"], rtol=1e-4, atol=1e-5)
    if "grad_value_logits_row0" in expected:
        gradient = recorded.critic.logits.grad[: LENGTH + 1]
        assert_close(gradient, expected["grad_value_logits_row0"], rtol=1e-3, atol=1e-5)


def test_normalizer_is_the_one_given() -> None:
    """Its scale divides the advantages, its state belongs to the loss."""
    normalizer = ReturnNormalizer(percentiles=(10, 90), rate=0.5, limit=1e9)
    recorded = Recorded(normalizer=normalizer, entropy_scale=0.0)
    losses, data = recorded.run()
    assert recorded.loss.normalizer is normalizer
    assert losses["return_scale"] == 1e9
    returns, value = data["imagination", "lambda_target"], data["imagination", "state_value"].detach()
    assert_close(data["imagination", "advantage"][:, :-1], (returns - value)[:, :-1] / 1e9)
    assert {"normalizer.low", "normalizer.high"} <= recorded.loss.state_dict().keys()


def latents_of(learner: Learner) -> TensorDict:
    """Data with latents that hang on the world model's graph, and noise, as the actor's loss gets it."""
    batch = example_batch(learner.agent, batch=2, length=4)
    return learner.world_model_loss(batch.set("noise", learner.draw_noise(2, 5)))[1]


def test_only_the_actor_is_taught() -> None:
    """Through latents that hang on the world model's graph no gradient flows back."""
    learner = tiny_learner()
    data = latents_of(learner)
    assert data["belief"].requires_grad
    losses, imagined = learner.actor_loss(data)
    for key in (
        "lambda_target",
        "advantage",
        "discount_weight",
        "action_log_prob",
    ):
        assert not imagined["imagination", key].requires_grad
    assert not imagined["bootstrap"].requires_grad
    assert taught_by(losses["loss_actor"], learner.agent) == {"actor"}
    assert all(parameter.grad.count_nonzero() for parameter in learner.agent.actor.parameters())


RENAMED: dict[str, NestedKey] = {
    field.name: ("renamed", "deeper", field.name) for field in fields(ActorLoss.default_keys)
}


def test_all_keys_may_be_others() -> None:
    """Modules made for nested keys and `set_keys` give the same loss, and nothing lands under an old name."""
    learner = tiny_learner()
    agent, usual, key = learner.agent, learner.actor_loss.eval(), RENAMED
    renamed = ActorLoss(
        ImagineRollout(agent.rssm, agent.actor, 3).tensordict_module(
            [key["belief"], key["state"], ("noise", "prior"), ("noise", "action")], [key["features"], key["action"]]
        ),
        agent.actor.probabilistic_module((key["features"],), key["action"]),
        agent.reward.tensordict_module([key["features"]], ["reward_logits", key["predicted_reward"]]),
        agent.continuation.tensordict_module([key["features"]], ["continue_logits", key["continuation"]]),
        agent.value.tensordict_module([key["features"]], ["state_value_logits", key["state_value"]]),
    ).eval()
    attach(usual.networks["imagine"], False)  # the same operations for both
    renamed.set_keys(**key)
    assert renamed.in_keys == [key["belief"], key["state"]]
    data = latents_of(learner)
    expected, usual_data = usual(data)
    moved = data.select("noise").set(key["belief"], data["belief"]).set(key["state"], data["state"])
    found, moved_data = renamed(moved)
    assert_close(found["loss_actor"], expected["loss_actor"])
    assert moved_data[key["bootstrap"]].equal(usual_data["bootstrap"])
    dream, usual_dream = moved_data[key["imagination"]], usual_data["imagination"]
    for name in ("lambda_target", "discount_weight", "action_log_prob", "advantage", "state_value"):
        assert dream[key[name]].equal(usual_dream[name])
    assert set(moved_data.keys()) == {"noise", "renamed"}
    assert set(dream.keys()) == {"renamed", "reward_logits", "continue_logits", "state_value_logits"}
