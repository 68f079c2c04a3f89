"""A head learns the action masks, and imagined policies keep to them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical
from torch.testing import assert_close
from torchrl.data import Binary, Composite, MultiOneHot, OneHot, TensorSpec, Unbounded

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.learner import Learner, example_batch
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.heads import MaskHead
from dreamer_torchrl.modules.rollout import ImagineRollout
from dreamer_torchrl.objectives.action_mask import ActionMaskLoss
from dreamer_torchrl.training.loading import load
from dreamer_torchrl.views.imagination import open_loop
from tests.objectives.examples import TINY
from tests.training.training_examples import trained

SIZES = (2, 3)
RATES = {"model": 1e-3, "actor": 1e-3, "value": 1e-3}
KINDS = {
    "V3": Learner,
    "V2": partial(SeparateLearner, rates=RATES, gradient_mix=0.3),
    "V1": partial(SeparateLearner, rates=RATES, model_first=False, imagined_start=False, target_every=0),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def agent_for(action: TensorSpec | None = None) -> Agent:
    """One of five classes in two variables, whose heads that start at zero say something."""
    torch.manual_seed(0)
    action = MultiOneHot(SIZES) if action is None else action
    observed = Composite(observation=Unbounded((5,)), action_mask=Binary(5, dtype=torch.bool))
    agent = Agent(observed, action, TINY)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return agent


def learner_for(kind: str = "V3", native: bool | None = False, agent: Agent | None = None, **options: Any) -> Learner:
    h = Hyperparameters(**{"imagination_length": 4, "warmup": 0, **options.pop("h", {})})
    return KINDS[kind](agent or agent_for(), h, compile=False, native=native, **options)


def steps(agent: Agent, seed: int = 0, batch: int = 4, length: int = 8) -> TensorDict:
    """Random ones whose mask is where the observation is positive; the first row has none."""
    found = example_batch(agent, batch, length, seed)
    found["action_mask"] = found["observation"] > 0
    found["action_mask"][0] = False
    return found


def variables(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(SIZES, -1)


def effective(mask: Tensor) -> Tensor:
    return torch.cat([part | ~part.any(-1, keepdim=True) for part in variables(mask)], -1)


@every_kind
@pytest.mark.parametrize("native", [False, True], ids=["torch", "kernels"])
def test_imagined_actions_keep_to_the_masks(kind: str, native: bool) -> None:
    """At the start to the recorded one, then to what the head says of the imagined features."""
    learner = learner_for(kind, native)
    batch, agent = steps(learner.agent), learner.agent
    _, data = learner.world_model_loss(batch.copy().set("noise", learner.draw_noise(*batch.shape)))
    imagined = learner.networks.imagine(data.detach())
    mask, action = imagined["action_mask"], imagined["action"][..., :-1, :].detach()
    assert torch.equal(mask[..., 0, :], batch["action_mask"][:, 1:])
    assert torch.equal(mask[..., 1:, :], agent.mask(imagined["features"][..., 1:, :])[1])
    assert 0.1 < mask[..., 1:, :].float().mean() < 0.9
    assert (action.round()[~effective(mask[..., :-1, :])] == 0).all()
    assert all((part.round().sum(-1) == 1).all() for part in variables(action))


@pytest.mark.parametrize("kind", ["V3", "V2"])
def test_the_policy_loss_has_the_masked_distribution(kind: str) -> None:
    learner = learner_for(kind, agent=agent_for(OneHot(5)), h={"entropy_scale": 0.01})
    batch = steps(learner.agent)
    _, data = learner.world_model_loss(batch.copy().set("noise", learner.draw_noise(*batch.shape)))
    imagined = learner.networks.imagine(data.detach())
    features, mask = imagined["features"].detach(), imagined["action_mask"]
    mask = mask | ~mask.any(-1, keepdim=True)
    theirs = Categorical(logits=learner.agent.actor(features).masked_fill(~mask, -torch.inf))
    losses, data = learner.actor_loss(data)
    ahead = 4 if kind == "V3" else 3  # the last two states have no judged action in V2
    assert_close(losses["entropy"], theirs.entropy()[..., :ahead].mean())
    if kind == "V3":
        log_prob = theirs.log_prob(imagined["action"].argmax(-1))[..., :ahead, None]
        assert_close(data["imagination", "action_log_prob"][..., :ahead, :], log_prob)


@pytest.mark.parametrize("kind", ["V3", "V2"])
def test_the_head_learns_a_mask_that_follows_from_the_observation(kind: str) -> None:
    """Which of two masks is recorded depends on a sign that is seen."""
    rate = {"h": {"learning_rate": 1e-2}} if kind == "V3" else {"rates": dict.fromkeys(RATES, 1e-2)}
    learner, metrics = learner_for(kind, **rate), []
    for seed in range(60):
        batch = steps(learner.agent, seed, batch=8)
        sign = batch["observation"][..., :1].sign()
        batch["observation"], two = sign.expand(-1, -1, 5), torch.tensor([[True, False, False, True, True]])
        batch["action_mask"] = torch.where(sign > 0, two, ~two)
        metrics.append(learner.update(batch)[0])
    assert all(each["finite"] for each in metrics)
    assert metrics[0]["action_mask_error"] > 0.25
    assert metrics[-1]["action_mask_error"] < 0.05
    assert metrics[-1]["loss_action_mask"] < 0.3 * metrics[0]["loss_action_mask"]


def test_an_exploring_policy_keeps_to_the_mask() -> None:
    explore = Plan2Explore(models=2, layers=1, units=8)
    learner = learner_for(extra_losses=[explore])
    metrics, _ = learner.update(steps(learner.agent))
    assert metrics["finite"]
    agent, seen = learner.agent, steps(learner.agent).select("observation", "action_mask", "is_init")
    acted = Policy(agent.encoder, agent.rssm, explore.explorer, noise=0.5)(seen)
    assert not (acted["action"] & ~effective(acted["action_mask"])).any()


def test_prediction_allows_at_least_one_class() -> None:
    head = MaskHead(4, 8, [(2, 3)])
    logits = torch.tensor([[-9.0, -2.0, -3.0, 1.0, -1.0, 2.0]])
    assert head.mean(logits).tolist() == [[False, True, False, True, False, True]]
    with pytest.raises(ValueError, match=r"mask=agent\.mask"):
        ImagineRollout(agent_for().rssm, agent_for().actor)


def test_loss_weighs_steps_as_a_prioritized_sampler_asks() -> None:
    agent = agent_for()
    data = steps(agent)[:, 1:].set("features", torch.randn(4, 8, agent.rssm.feature_size))
    plain, data["priority_weight"] = ActionMaskLoss(agent.mask)(data), torch.zeros(4, 8)
    data["priority_weight"][2] = 4.0
    weighed = ActionMaskLoss(agent.mask)(data)["loss_action_mask"]
    assert_close(weighed, ActionMaskLoss(agent.mask)(data[2:3].exclude("priority_weight"))["loss_action_mask"])
    assert weighed != plain["loss_action_mask"]


def test_states_round_trip() -> None:
    """A learner goes on to the last bit from the saved state of another one."""
    one, other = learner_for(), learner_for()
    one.update(steps(one.agent))
    other.load_state_dict(one.state_dict())
    for learner in (one, other):
        learner.update(steps(one.agent, seed=1))
    assert all(torch.equal(*pair) for pair in zip(one.agent.parameters(), other.agent.parameters(), strict=True))
    assert "mask.logits.weight" in one.agent.state_dict()


def test_a_run_with_masks_is_resumed_loaded_and_dreamed_of(tmp_path: Path) -> None:
    """Taxi, whose masks are in its info."""
    words = ("env=taxi", "env.action_mask=true", "env.num_envs=2", "eval.every=30")
    trained(tmp_path / "run", *words, "total_steps=40")
    trained(tmp_path / "run", *words, "total_steps=60")
    agent = load(tmp_path / "run").agent
    assert list(agent.action_space.masks) == ["action_mask"]
    recorded = example_batch(agent, 1, 11)[0]
    recorded["is_init"][:], recorded["is_init"][0] = False, True
    assert open_loop(agent, recorded, context=4, imagine=5).imagined
