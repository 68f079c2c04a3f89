"""The policy acts in TorchRL's rollouts and collectors, and its latents belong to the observation beside them."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDictBase
from torch import nn
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.envs import GymEnv, check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl import Agent, Policy, build_agent
from dreamer_torchrl.keys import LATENTS
from tests.agents.policy_examples import DETERMINISTIC, RANDOM, Crane, agent_for, environment, every_exploration, seen
from tests.objectives.examples import TINY


@torch.no_grad()
def assert_aligned(agent: Agent, steps: TensorDictBase, first: int = 0, modes: bool = False) -> None:
    """What is stored at each step of ``[..., T]`` comes from its own observation and the step before it.

    The belief is a function of what was stored one step before; the state is the posterior's mode, or a draw from it.
    """
    for row in steps.reshape(-1, steps.shape[-1]).unbind(0):
        action = agent.action_space.flatten({key: row[key] for key in agent.action_space.keys})
        assert_close(row["previous_action"], action)
        before = [nn.functional.pad(x, (0, 0) * (x.ndim - 1) + (1, -1)) for x in (action, row["belief"], row["state"])]
        encoded = agent.encoder(*[row[key] for key in agent.encoder.in_keys])
        belief, _, logits = agent.rssm(encoded, before[0], row["is_init"], *before[1:])
        assert_close(row["belief"][first:], belief[first:])
        assert (row["state"].sum(-1) == 1).all()
        if modes:
            assert (row["state"].argmax(-1) == logits.argmax(-1))[first:].all()


@pytest.mark.parametrize("primed", [False, True], ids=["bare", "primed"])
def test_collector_over_three_environments_keeps_latents_with_their_observation(primed: bool) -> None:
    """Over several batches: latents go on where the last batch ended, and each environment resets alone."""
    agent = agent_for(environment("Crane"))
    env = environment("Crane", agent if primed else None, count=3)
    collector = Collector(env, agent.policy, frames_per_batch=24, total_frames=72, exploration_type=DETERMINISTIC)
    collector.set_seed(0)
    steps = torch.cat([batch.clone() for batch in collector], 1)
    collector.shutdown()
    assert steps.shape == (3, 24)
    assert steps["is_init"].sum() > 3
    assert_aligned(agent, steps, modes=True)


def test_primer_gives_an_environment_with_correct_specs() -> None:
    agent = agent_for(environment("Pendulum-v1"))
    env = environment("Pendulum-v1", agent, count=3)
    check_env_specs(env)
    fresh = env.reset()
    assert all((fresh[key] == 0).all() for key in LATENTS)
    for step in env.rollout(10, agent.policy, break_when_any_done=False).unbind(-1):
        assert env.full_state_spec.is_in(step.select(*LATENTS))


@every_exploration
def test_is_init_forgets_exactly(exploration: ExplorationType) -> None:
    """Bit for bit as if nothing had been before, in those rows alone where it is set."""
    agent = agent_for(environment())
    fresh = seen(agent, 4)
    used = fresh.clone().update({"belief": torch.randn(4, 16), "state": torch.rand(4, 4, 3)})
    used["previous_action"] = torch.randn(4, 2)
    used["is_init"][2] = False
    with set_exploration_type(exploration):
        torch.manual_seed(1)
        agent.policy(fresh)
        torch.manual_seed(1)
        agent.policy(used)
    same = torch.tensor([0, 1, 3])
    for key in ("belief", "state", "action"):
        assert (used[key][same] == fresh[key][same]).all()
    assert (used["belief"][2] != fresh["belief"][2]).any()


def test_deterministic_exploration_takes_modes() -> None:
    agent = agent_for(environment())
    with set_exploration_type(DETERMINISTIC), torch.no_grad():
        steps = agent.policy(seen(agent, 4))
    again = [agent.policy(seen(agent, 4))["state"] for _ in range(3)]  # outside of any exploration type: modes too
    assert all((state == steps["state"]).all() for state in again)
    _, _, logits = agent.rssm(
        agent.encoder(steps["observation"]), torch.zeros(4, 2), steps["is_init"], *agent.rssm.initial(4)
    )
    assert (steps["state"].argmax(-1) == logits.argmax(-1)).all()
    policy = agent.actor.distribution(agent.actor(agent.rssm.latent.features(steps["belief"], steps["state"])))
    assert (steps["action"].argmax(-1) == policy.mode.argmax(-1)).all()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_random_exploration_draws_states_and_actions_from_their_distributions(name: str) -> None:
    agent = agent_for(environment(name))
    many = seen(agent, 1).expand(4000).clone()
    with set_exploration_type(RANDOM), torch.no_grad():
        agent.policy(many)
        _, _, logits = agent.rssm(
            agent.encoder(many["observation"]),
            torch.zeros(4000, agent.action_space.size),
            many["is_init"],
            *agent.rssm.initial(4000),
        )
        probs = 0.99 * logits[0].softmax(-1) + 0.01 / 3
        assert_close(many["state"].mean(0), probs, atol=0.04, rtol=0)
        policy = agent.actor.distribution(agent.actor(agent.rssm.latent.features(many["belief"], many["state"])))
        assert_close(many["previous_action"].mean(0), policy.mean.mean(0), atol=0.06, rtol=0)


def test_without_is_init_the_mend_is_told() -> None:
    env = GymEnv("CartPole-v1")
    agent = build_agent(env.observation_spec, env.action_spec, TINY)
    with pytest.raises(KeyError, match=r"append InitTracker\(\)"):
        env.rollout(2, agent.policy)


def test_a_missing_observation_is_named_with_what_is_there() -> None:
    agent = agent_for(environment("Crane"))
    with pytest.raises(KeyError, match=r"observation 'camera/front', but the data holds hook/loaded, hook/position"):
        agent.policy(seen(agent, 2).exclude(("camera", "front")))


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


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Crane"])
def test_exploration_noise_is_acted_out_and_remembered(name: str) -> None:
    """What the environment gets is what the latents remember; modes stay, and without noise nothing more is drawn."""
    agent = agent_for(environment(name))
    space, results = agent.action_space, {}
    for amount in (0.0, 0.5):
        policy = Policy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(0), noise=amount)
        for exploration in (DETERMINISTIC, RANDOM):
            with set_exploration_type(exploration):
                results[amount, exploration] = steps = policy(seen(agent, 200))
            action = space.flatten({key: steps[key] for key in space.keys})
            assert_close(steps["previous_action"], action)
        results[amount] = policy.generator.get_state()
    plain, noisy = results[0.0, RANDOM], results[0.5, RANDOM]
    assert_close(plain["state"], noisy["state"], rtol=0, atol=0)
    assert noisy["previous_action"].abs().max() <= 1
    generator = torch.Generator().manual_seed(0)
    agent.rssm.latent.noise(200, generator=generator)
    space.noise(200, generator=generator)
    assert generator.get_state().equal(results[0.0])
    extra = space.noise(200, generator=generator)
    assert generator.get_state().equal(results[0.5])
    assert_close(noisy["previous_action"], space.explored(plain["previous_action"], 0.5, extra))
    assert_close(results[0.0, DETERMINISTIC]["previous_action"], results[0.5, DETERMINISTIC]["previous_action"])
