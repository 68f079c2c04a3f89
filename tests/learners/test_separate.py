"""World model, actor and critic learn from losses of their own; an exploring behaviour learns beside them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded

from dreamer_torchrl import Learner, build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.cores import LayerNormGRU, PlainGRU
from dreamer_torchrl.modules.heads import AlwaysContinue, ContinueHead, NormalHead
from dreamer_torchrl.modules.latents import GaussianLatent
from dreamer_torchrl.modules.layers import dense_layers
from tests.objectives.examples import TINY

FLOATS, CLASSES = Bounded(-1, 1, (2,)), OneHot(3)
RATES = {"model": 1e-3, "actor": 1e-3, "value": 1e-3}
GROUPS = {"actor": ("actor.",), "value": ("value.",), "model": ("encoder.", "rssm.", "decoder.", "reward.", "continu")}


def second(action: TensorSpec = FLOATS, **parts: Any) -> Agent:
    """A small agent of DreamerV2's parts."""
    torch.manual_seed(0)
    kind = dense_layers()
    heads = {"reward": partial(NormalHead, kind=kind), "value": partial(NormalHead, kind=kind)}
    parts = {"core": LayerNormGRU, "layers": kind, "prior_layers": 1, **heads, **parts}
    return build_agent(Composite(observation=Unbounded((3,))), action, TINY, **parts)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.agent.state_dict().items()}


def moved(learner: Learner, update: Callable[[], Any]) -> set[str]:
    """The groups of which an update changes some weight."""
    before = weights(learner)
    update()
    changed = {name for name, value in weights(learner).items() if not value.equal(before[name])}
    return {group for group, names in GROUPS.items() if any(name.startswith(names) for name in changed)}


@pytest.mark.parametrize("group", ["model", "actor", "value"])
@pytest.mark.parametrize("action", [FLOATS, CLASSES], ids=["dynamics", "reinforce"])
def test_each_group_is_trained_by_its_own_loss_alone(group: str, action: TensorSpec) -> None:
    learner = SeparateLearner(second(action), rates={name: 1e-3 * (name == group) for name in RATES})
    batch = example_batch(learner.agent, batch=2, length=6)
    assert moved(learner, lambda: learner.update(batch)) == {group}


def test_imagination_uses_the_stepped_model_only_with_model_first() -> None:
    actors = []
    for model_first in (True, False):
        for rate in (0.0, 0.1):
            learner = SeparateLearner(second(), rates={**RATES, "model": rate}, model_first=model_first)
            learner.update(example_batch(learner.agent, batch=2, length=6))
            actors.append(learner.agent.actor.state_dict())
    stepped, unstepped = ([not a[key].equal(b[key]) for key in a] for a, b in (actors[:2], actors[2:]))
    assert any(stepped) and not any(unstepped)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"core": PlainGRU, "latent": GaussianLatent},
        {"continuation": AlwaysContinue},
        {"continuation": partial(ContinueHead, layers=2, kind=dense_layers(norm=True))},
        {"layers": dense_layers(norm=True, activation="relu")},
    ],
    ids=["v2", "v1", "endless", "head", "norm"],
)
def test_members_of_the_family_learn_and_resume(parts: dict[str, Any]) -> None:
    """Losses fall on one batch; a learner with a copy of the state goes on in the same way, to the last bit."""
    learner = SeparateLearner(second(**parts), rates=RATES, extra_losses=[Plan2Explore(models=2, layers=1, units=8)])
    batch = example_batch(learner.agent, batch=2, length=6)
    objectives = [float(learner.update(batch)[0]["loss_reconstruction"]) for _ in range(30)]
    assert objectives[-1] < 0.9 * objectives[0]
    other = SeparateLearner(second(**parts), rates=RATES, extra_losses=[Plan2Explore(models=2, layers=1, units=8)])
    other.load_state_dict(deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.update(batch)
    assert_close(other.state_dict(), learner.state_dict(), rtol=0, atol=0)


def test_the_target_critic_is_a_copy_made_every_so_many_updates() -> None:
    learner = SeparateLearner(second(), rates=RATES, target_every=3)
    batch = example_batch(learner.agent, batch=2, length=6)
    equal = []
    for _ in range(7):
        learner.update(batch)
        slow = learner.slow_update.slow.values()
        equal.append(all(a.equal(b.data) for a, b in zip(slow, learner.slow_update.fast, strict=True)))
    assert equal == [True, False, False, True, False, False, True]


def test_an_explorer_does_not_see_rewards() -> None:
    """Other rewards change the actor of the task and not the exploring one, nor the ensemble."""
    explorers, actors = [], []
    for scale in (1.0, 10.0):
        agent = second(CLASSES)
        h = replace(Hyperparameters(), reward_grad=False)
        learner = SeparateLearner(agent, h, rates=RATES, extra_losses=[Plan2Explore(models=3, layers=1, units=8)])
        batch = example_batch(agent, batch=2, length=6)
        batch["reward"] *= scale
        for _ in range(3):
            learner.update(batch)
        explorers.append(dict(learner.loss.extra[0].named_parameters()))
        actors.append(agent.actor.state_dict())
    assert_close(*explorers, rtol=0, atol=0)
    assert any(not a.equal(b) for a, b in zip(actors[0].values(), actors[1].values(), strict=True))


def test_an_explorer_is_rewarded_where_models_disagree() -> None:
    learner = Learner(second(CLASSES), extra_losses=[Plan2Explore(models=3, layers=1, units=8, scale=2.0)])
    explore = learner.loss.extra[0]
    reward = explore.actor_loss.networks["reward"]
    features, action = torch.randn(2, 4, learner.agent.rssm.feature_size), torch.randn(2, 4, 3)
    found = reward(TensorDict(features=features, action=action, batch_size=[2, 4]))["predicted_reward"]
    before = torch.cat([torch.zeros(2, 1, 3), action[:, :-1]], 1)  # the action that led to each step
    means = torch.stack([head(torch.cat([features, before], -1))[0] for head in explore.ensemble])
    spread = (means - means.mean(0)).square().mean(0).sqrt()
    assert_close(found, 2 * spread.mean(-1, keepdim=True))


def test_impossible_learners_are_named() -> None:
    with pytest.raises(ValueError, match="rates has no value: give one of model, actor and value"):
        SeparateLearner(second(), rates={"model": 1e-3, "actor": 1e-3})
    with pytest.raises(ValueError, match=r"mix=1\.5 is impossible"):
        SeparateLearner(second(), rates=RATES, gradient_mix=1.5)
    with pytest.raises(ValueError, match="target='reward' is unknown: choose one of state, encoded_latents"):
        Learner(second(), extra_losses=[Plan2Explore(target="reward")])
