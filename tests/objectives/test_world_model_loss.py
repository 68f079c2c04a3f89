"""The world model's loss: what each argument does, whom it teaches, and what it says about bad input.

Its numbers are held against the official ones by `dreamer_torchrl.interop.verify`, on whole recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.modules.distributions import OneHotDist
from dreamer_torchrl.modules.latents import CategoricalLatent
from dreamer_torchrl.modules.rollout import ObserveSequence
from dreamer_torchrl.objectives import WorldModelLoss
from dreamer_torchrl.objectives.world_model import SCALES, kl
from tests.objectives.examples import taught_by, tiny_agent, world_model_loss


def batch_for(agent: Agent, length: int = 4) -> TensorDict:
    """Steps ``[3, 1 + length]`` in which something ends, with the noise that makes them repeat."""
    batch = example_batch(agent, batch=3, length=length)
    batch["is_init"].zero_()
    batch["terminated"].zero_()
    batch["terminated"][1, 2] = batch["done"][1, 2] = batch["is_init"][1, 3] = True
    batch["noise", "posterior"] = torch.rand(3, 1 + length, 4)
    return batch


def run(**options: Any) -> tuple[dict[str, Tensor], TensorDict]:
    """Losses and data of the same agent and batch under other options."""
    torch.manual_seed(0)
    agent = tiny_agent()
    losses, data = world_model_loss(agent, **options)(batch_for(agent))
    return losses.to_dict(), data


logit_lists = st.lists(st.floats(-8, 8), min_size=6, max_size=6)


def kl_of(a: Tensor, b: Tensor, unimix: float) -> Tensor:
    """By torch's own distributions, summed over the variables."""
    return kl_divergence(*(Categorical(OneHotDist(logits, unimix).probs) for logits in (a, b))).sum(-1)


def states(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 2, 3)


@given(logit_lists, logit_lists, st.floats(0, 5), st.sampled_from([0.0, 0.01, 0.5]))
def test_kl_never_falls_below_the_free_nats(a: list[float], b: list[float], free_nats: float, unimix: float) -> None:
    """Both sides have the same value, which is the KL itself where that is larger."""
    dynamics, representation = kl(CategoricalLatent(2, 3, unimix), states(a), states(b), free_nats)
    free = kl_of(states(a), states(b), unimix)
    assert free >= -1e-9
    assert (dynamics >= free_nats).all()
    assert_close(dynamics, free.clamp_min(free_nats))
    assert_close(representation, dynamics)


@pytest.mark.parametrize("term", SCALES)
def test_scale_scales_its_own_loss(term: str) -> None:
    usual, found = run()[0], run(scales={term: 2.5 * SCALES[term]})[0]
    for other in SCALES:
        factor = 2.5 if other == term else 1
        assert_close(found[f"loss_{other}"], factor * usual[f"loss_{other}"])


def test_kl_and_entropies_are_those_of_the_latents_distributions() -> None:
    losses, data = run(free_nats=0.0)
    unimix = 0.01
    posterior, prior = (OneHotDist(data[f"{name}_logits"], unimix) for name in ("posterior", "prior"))
    assert_close(losses["loss_dynamics"], kl_of(posterior.logits, prior.logits, unimix).mean())
    assert_close(losses["posterior_entropy"], posterior.entropy().mean())
    assert_close(losses["prior_entropy"], prior.entropy().mean())


def test_errors_of_heads_beside_the_variances_of_what_they_predict() -> None:
    losses, data = run()
    goes_on = torch.where(data["terminated"], 0.0, 1 - 1 / 333)
    for name, target, prediction in (
        ("reward", data["reward"], data["predicted_reward"]),
        ("continue", goes_on, data["continuation"]),
    ):
        assert_close(losses[f"{name}_error"], nn.functional.mse_loss(prediction, target))
        assert_close(losses[f"{name}_variance"], nn.functional.mse_loss(target.mean().expand_as(target), target))


@pytest.mark.parametrize(
    ("options", "alive"),
    [({}, 1 - 1 / 333), ({"horizon": 10}, 0.9), ({"horizon": 10, "discount_in_continue": False}, 1.0)],
    ids=["official", "short", "discount_elsewhere"],
)
def test_horizon_is_the_continue_target(options: dict[str, Any], alive: float) -> None:
    """Terminal steps are 0, all others, also truncated ones, what is left after the discount."""
    losses, data = run(**options)
    target = torch.where(data["terminated"], 0.0, alive)
    expected = nn.functional.binary_cross_entropy_with_logits(data["continue_logits"], target)
    assert data["terminated"].any()
    assert_close(losses["loss_continue"], expected)


def test_reward_grad() -> None:
    """The reward's error teaches the latents, or only its own head."""
    for reward_grad, taught in ((True, {"reward", "rssm", "encoder"}), (False, {"reward"})):
        agent = tiny_agent()
        losses, data = world_model_loss(agent, reward_grad=reward_grad)(batch_for(agent))
        assert taught_by(losses["loss_reward"], agent) == taught
        assert data["features"].requires_grad


@pytest.mark.parametrize(
    ("term", "taught"),
    [
        ("reconstruction", {"encoder", "rssm", "decoder"}),
        ("continue", {"encoder", "rssm", "continuation"}),
        ("dynamics", {"encoder", "rssm"}),
        ("representation", {"encoder", "rssm"}),
    ],
)
def test_each_term_teaches_its_head_and_the_latents(term: str, taught: set[str]) -> None:
    agent = tiny_agent()
    losses, _ = world_model_loss(agent, free_nats=0.0)(batch_for(agent))
    assert taught_by(losses[f"loss_{term}"], agent) == taught


NAMES = {field.name: ("renamed", field.name) for field in fields(WorldModelLoss.default_keys)}


def renamed_loss(agent: Agent, key: Mapping[str, NestedKey]) -> WorldModelLoss:
    before = [("previous", "belief"), ("previous", "state"), ("noise", "posterior")]
    latents = [key[name] for name in ("belief", "state", "posterior_logits", "prior_logits", "features")]
    loss = WorldModelLoss(
        agent.encoder.tensordict_module(),
        ObserveSequence(agent.rssm).tensordict_module(
            ["encoded_latents", "previous_action", key["is_init"], *before], latents
        ),
        agent.decoder.tensordict_module([key["features"]]),
        agent.reward.tensordict_module([key["features"]], [key["reward_logits"], key["predicted_reward"]]),
        agent.continuation.tensordict_module([key["features"]], [key["continue_logits"], "continuation"]),
        agent.spaces,
        agent.action_space,
        agent.rssm.latent,
    )
    loss.set_keys(**key)
    return loss


def test_all_keys_may_be_others() -> None:
    """Modules made for nested keys and `set_keys` give the same losses, and nothing lands under an old name."""
    agent = tiny_agent()
    batch = batch_for(agent)
    expected, _ = world_model_loss(agent)(batch)
    moved = batch.select("observation", "action", ("noise", "posterior"))
    for name in ("reward", "terminated", "is_init", "belief", "state"):
        moved[NAMES[name]] = batch[name]
    loss = renamed_loss(agent, NAMES)
    found, data = loss(moved)
    for key, value in expected.items():
        assert_close(found[key], value)
    assert loss.in_keys[2:] == [NAMES[name] for name in ("is_init", "reward", "terminated", "belief", "state")]
    assert {field.name for field in fields(loss.default_keys)}.isdisjoint(data.keys())


def test_unknown_scale_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"Unknown loss scales \['rewards'\]: there are reconstruction, reward, "):
        world_model_loss(tiny_agent(), scales={"rewards": 1.0})
