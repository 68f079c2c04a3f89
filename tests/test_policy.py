"""The policy acts in TorchRL's rollouts and collectors, and its latents belong to the observation beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torch.testing import assert_close
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.envs import (
    ActionScaling,
    Compose,
    EnvBase,
    GymEnv,
    InitTracker,
    SerialEnv,
    TransformedEnv,
    check_env_specs,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl import Agent, Learner, Size, build_agent
from dreamer_torchrl.agent import Policy
from dreamer_torchrl.learner import example_batch
from dreamer_torchrl.modules.rssm import features_of

TINY = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)
LATENTS = ("belief", "state", "previous_action")
RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
every_exploration = pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC], ids=["random", "deterministic"])
with_and_without_primer = pytest.mark.parametrize("primed", [False, True], ids=["bare", "primed"])


class Crane(EnvBase):
    """Sees an image, floats and a class under nested keys, and is moved by five kinds of action at once.

    Episodes have ``length`` steps; the observations are noise.
    """

    def __init__(self, length: int = 5):
        super().__init__()
        self.length = length
        self.observation_spec = Composite(
            camera=Composite(front=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8)),
            hook=Composite(position=Unbounded((2,)), loaded=Categorical(2)),
        )
        self.action_spec = Composite(
            arm=Composite(joints=Bounded(-1, 1, (2,))),
            gear=Categorical(3),
            horn=OneHot(4),
            levers=MultiCategorical([2, 3]),
            pedals=MultiOneHot([2, 3]),
        )
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        self.steps = 0
        return self.observation_spec.rand()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        ended = torch.tensor([self.steps == self.length])
        return self.observation_spec.rand().update({"reward": torch.ones(1), "terminated": ended, "done": ended})

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(0 if seed is None else seed)


def environment(name: str = "CartPole-v1", agent: Agent | None = None, count: int | None = None) -> TransformedEnv:
    """One environment, or ``count`` in a row, with the agent's primer if one is given."""
    make: Callable[[], EnvBase] = Crane if name == "Crane" else lambda: GymEnv(name)
    transforms = [ActionScaling()] if name == "Pendulum-v1" else []
    transforms += [InitTracker()] + ([agent.primer()] if agent else [])
    return TransformedEnv(make() if count is None else SerialEnv(count, make), Compose(*transforms))


def agent_for(env: EnvBase, **options: Any) -> Agent:
    """An agent whose biases are not 0, or else a fresh belief is 0 and shows nothing; its actions are clear choices."""
    agent = build_agent(env.observation_spec_unbatched, env.full_action_spec_unbatched, TINY, **options)
    for name, parameter in agent.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
        elif name.startswith("actor.heads"):
            nn.init.normal_(parameter)
    return agent


def seen(agent: Agent, *batch: int) -> TensorDict:
    """Observations of a first step, noise."""
    generator = torch.Generator().manual_seed(0)
    steps = {key: space.random(batch, generator) for key, space in agent.spaces.items()}
    return TensorDict({**steps, "is_init": torch.ones(*batch, 1, dtype=torch.bool)}, batch_size=batch)


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


# In TorchRL's loops


@every_exploration
@with_and_without_primer
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Crane"])
def test_rollout_keeps_latents_with_their_observation(name: str, primed: bool, exploration: ExplorationType) -> None:
    agent = agent_for(environment(name))
    env = environment(name, agent if primed else None)
    env.set_seed(0)
    with set_exploration_type(exploration):
        steps = env.rollout(40, agent.policy, break_when_any_done=False)
    assert steps["is_init"].sum() > 1 or name == "Pendulum-v1"
    assert_aligned(agent, steps, modes=exploration is DETERMINISTIC)


@every_exploration
@with_and_without_primer
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Crane"])
def test_collector_over_three_environments_keeps_latents_with_their_observation(
    name: str, primed: bool, exploration: ExplorationType
) -> None:
    """Over several batches: latents go on where the last batch ended, and each environment resets alone."""
    agent = agent_for(environment(name))
    env = environment(name, agent if primed else None, count=3)
    collector = Collector(env, agent.policy, frames_per_batch=45, total_frames=135, exploration_type=exploration)
    collector.set_seed(0)
    steps = torch.cat([batch.clone() for batch in collector], 1)
    collector.shutdown()
    assert steps.shape == (3, 45)
    assert steps["is_init"].sum() > 3 or name == "Pendulum-v1"
    assert_aligned(agent, steps, modes=exploration is DETERMINISTIC)


def test_two_workers_collect_aligned_latents_and_receive_new_weights() -> None:
    agent = agent_for(environment())
    collector = MultiSyncCollector(
        [lambda: environment(count=2)] * 2,
        agent.policy,
        frames_per_batch=80,
        total_frames=160,
        cat_results="stack",
        exploration_type=DETERMINISTIC,
    )
    batches = iter(collector)
    steps = next(batches).clone()
    assert steps.shape == (2, 2, 20)
    assert_aligned(agent, steps, modes=True)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(1.1)
    collector.update_policy_weights_()
    steps = torch.cat([steps, next(batches)], -1)
    collector.shutdown()
    assert_aligned(agent, steps, first=20, modes=True)


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_primer_gives_an_environment_with_correct_specs(name: str, count: int | None) -> None:
    agent = agent_for(environment(name))
    env = environment(name, agent, count)
    check_env_specs(env)
    fresh = env.reset()
    assert all((fresh[key] == 0).all() for key in LATENTS)
    for step in env.rollout(10, agent.policy, break_when_any_done=False).unbind(-1):
        assert env.full_state_spec.is_in(step.select(*LATENTS))


# Resets


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


def test_missing_latents_are_zeros() -> None:
    agent = agent_for(environment())
    bare, given = seen(agent, 4), seen(agent, 4)
    bare["is_init"][:] = given["is_init"][:] = False
    given.update({key: spec.zero((4,)) for key, spec in agent.latent_spec.items()})
    assert (agent.policy(bare) == agent.policy(given)).all()


def test_state_may_come_as_class_indices() -> None:
    """As replay stores it."""
    agent = agent_for(environment())
    one_hot, indices = seen(agent, 4), seen(agent, 4)
    one_hot["is_init"][:] = indices["is_init"][:] = False
    indices["state"] = torch.randint(3, (4, 4), dtype=torch.uint8)
    one_hot["state"] = nn.functional.one_hot(indices["state"].long(), 3).float()
    assert (agent.policy(one_hot) == agent.policy(indices)).all()


# Exploration and randomness


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
    policy = agent.actor.distribution(agent.actor(features_of(steps["belief"], steps["state"])))
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
        policy = agent.actor.distribution(agent.actor(features_of(many["belief"], many["state"])))
        assert_close(many["previous_action"].mean(0), policy.mean.mean(0), atol=0.06, rtol=0)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Crane"])
def test_the_same_seed_gives_the_same_actions(name: str) -> None:
    agent = agent_for(environment(name))

    def act(seed: int) -> TensorDictBase:
        torch.manual_seed(seed)
        return agent.policy(seen(agent, 16))

    with set_exploration_type(RANDOM):
        first, same, other = act(0), act(0), act(1)
    assert (first == same).all()
    assert not (first == other).all()


def test_a_generator_of_ones_own_leaves_torchs_alone() -> None:
    agent = agent_for(environment())

    def act(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return Policy(agent.encoder, agent.rssm, agent.actor, generator)(seen(agent, 64))["action"]

    before = torch.get_rng_state()
    with set_exploration_type(RANDOM):
        first, same, other = act(0), act(0), act(1)
    assert (first == same).all()
    assert (first != other).any()
    assert (torch.get_rng_state() == before).all()


# Shapes, dtypes, specs


@every_exploration
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("name", ["CartPole-v1", "Crane"])
def test_any_batch_shape(name: str, batch: tuple[int, ...], exploration: ExplorationType) -> None:
    agent = agent_for(environment(name))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_actions_have_their_specs_dtype(dtype: torch.dtype) -> None:
    spec = Bounded(-1, 1, (2,), dtype=dtype)
    agent = build_agent(Composite(observation=Unbounded((4,))), spec, TINY)
    action = agent.policy(seen(agent, 64))["action"]
    assert action.dtype is dtype
    assert spec.is_in(action)


def test_draws_of_floats_are_not_clipped() -> None:
    """As in the official agent, whose environments clip: the log-probability is that of the unclipped draw."""
    agent = agent_for(environment("Pendulum-v1"))
    with set_exploration_type(RANDOM):
        action = agent.policy(seen(agent, 1000))["action"]
    assert action.abs().max() > 1


@pytest.mark.parametrize("name", ["CartPole-v1", "Crane"])
def test_bfloat16_computes_near_float32_and_gives_float32(name: str) -> None:
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


# With the agent


def test_policy_shares_the_agents_weights() -> None:
    """A policy that was handed out before an update acts on the new weights."""
    agent = agent_for(environment())
    policy = agent.policy
    before = policy(seen(agent, 8))["belief"]
    learner = Learner(agent)
    batch = example_batch(agent, batch=2, length=4)
    learner.update(batch)
    learner.update(batch)  # the first update moves nothing: warm-up
    assert (policy(seen(agent, 8))["belief"] != before).any()


def test_policy_holds_what_acting_needs_and_no_more() -> None:
    agent = agent_for(environment())
    assert {name.split(".")[0] for name in agent.policy.state_dict()} == {"encoder", "rssm", "actor"}


def test_policy_leaves_no_graph() -> None:
    agent = agent_for(environment())
    steps = agent.policy(seen(agent, 2))
    assert not any(value.requires_grad for value in steps.values(True, True))


def test_without_is_init_the_mend_is_told() -> None:
    env = GymEnv("CartPole-v1")
    agent = build_agent(env.observation_spec, env.action_spec, TINY)
    with pytest.raises(KeyError, match=r"append InitTracker\(\)"):
        env.rollout(2, agent.policy)


def test_a_missing_observation_is_named_with_what_is_there() -> None:
    agent = agent_for(environment("Crane"))
    with pytest.raises(KeyError, match=r"observation 'camera/front', but the data holds hook/loaded, hook/position"):
        agent.policy(seen(agent, 2).exclude(("camera", "front")))
