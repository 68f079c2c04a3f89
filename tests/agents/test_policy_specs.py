"""Observations of any shape go into the policy, and actions of the right form, range and dtype come out."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl import build_agent
from tests.agents.policy_examples import LATENTS, RANDOM, TINY, Crane, agent_for, environment, every_exploration, seen


@every_exploration
@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_batch_shape(batch: tuple[int, ...], exploration: ExplorationType) -> None:
    agent = agent_for(environment("Crane"))
    with set_exploration_type(exploration):
        steps = agent.policy(seen(agent, *batch))
        steps = agent.policy(steps.clone().update({"is_init": torch.zeros(*batch, 1, dtype=torch.bool)}))
    assert steps.batch_size == batch
    for key, spec in agent.latent_spec.items():
        assert steps[key].shape == (*batch, *spec.shape)
        assert steps[key].dtype is torch.float32
    for key, space in agent.action_space.spaces.items():
        assert steps[key].shape == (*batch, *space.shape)


@every_exploration
@pytest.mark.parametrize(
    "action",
    [
        OneHot(3),
        OneHot(3, dtype=torch.bool),
        Categorical(3),
        Categorical(3, dtype=torch.int32),
        MultiOneHot([2, 3]),
        MultiCategorical([2, 3]),
        Bounded(-1, 1, (2, 2), dtype=torch.int64),
        Unbounded((2, 3)),
        Crane().full_action_spec,
    ],
    ids=str.split("one_hot one_hot_bool categorical categorical_int32 multi_one_hot multi integers floats composite"),
)
def test_actions_are_in_their_spec(action: TensorSpec, exploration: ExplorationType) -> None:
    """Of bounded floats the mode is; a draw may leave the bounds, see below."""
    agent = build_agent(Composite(observation=Unbounded((4,))), action, TINY)
    with set_exploration_type(exploration):
        steps = agent.policy(seen(agent, 64))
    leaves = dict(action.items(True, True)) if isinstance(action, Composite) else {"action": action}
    for key, leaf in leaves.items():
        assert steps[key].dtype is leaf.dtype
        bounded = isinstance(leaf, Bounded) and leaf.dtype.is_floating_point
        assert leaf.is_in(steps[key].clamp(-1, 1) if bounded else steps[key])


def test_draws_of_floats_are_not_clipped() -> None:
    """As in the official agent, whose environments clip: the log-probability is that of the unclipped draw."""
    agent = agent_for(environment("Pendulum-v1"))
    with set_exploration_type(RANDOM):
        action = agent.policy(seen(agent, 1000))["action"]
    assert action.abs().max() > 1


def test_bfloat16_computes_near_float32_and_gives_float32(name: str = "Crane") -> None:
    """The same weights; latents and action are float32 again."""
    torch.manual_seed(0)
    exact = agent_for(environment(name))
    rough = agent_for(environment(name), dtype=torch.bfloat16)
    rough.load_state_dict(exact.state_dict())
    steps, same = rough.policy(seen(rough, 16)), exact.policy(seen(exact, 16))
    assert_close(steps["belief"], same["belief"], atol=0.05, rtol=0.05)
    assert (steps["belief"] != same["belief"]).any()
    assert {steps[key].dtype for key in LATENTS} == {torch.float32}
    env = environment(name)
    with set_exploration_type(RANDOM):
        env.rollout(10, rough.policy, break_when_any_done=False)
