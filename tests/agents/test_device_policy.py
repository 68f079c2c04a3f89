"""Acting on a GPU in environments on the host: the steps that a policy on the CPU would give, and no host inside."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import set_exploration_type

from dreamer_torchrl import Agent, Policy, build_agent
from dreamer_torchrl.agents.device_policy import DevicePolicy
from dreamer_torchrl.collectors.episodes import Episodes
from dreamer_torchrl.collectors.make_collector import make_collector
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.schema import CollectorSettings
from dreamer_torchrl.envs import make_env
from dreamer_torchrl.keys import LATENTS
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.training.evaluation import evaluate
from tests.agents.policy_examples import Crane, agent_for, environment, every_exploration
from tests.learners.tape import NoLiterals, OnDevice, TapeGraphs, tensors_in
from tests.objectives.examples import TINY
from tests.training.training_examples import differences

STREAMS, STEPS = 2, 60


def pole(place: int) -> StreamEnv:
    return StreamEnv(make_env("gym", {"id": "CartPole-v1"}), entropy=(place,), stream=place)


def poles() -> StreamEnvs:
    return StreamEnvs([partial(pole, place) for place in range(STREAMS)])


@pytest.fixture
def agent() -> Agent:
    envs = poles()
    return build_agent(envs.observation_spec_unbatched, envs.full_action_spec_unbatched, TINY)


def plain(agent: Agent) -> Policy:
    return Policy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(1))


def eager(agent: Agent) -> DevicePolicy:
    return DevicePolicy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(1))


def captured(agent: Agent) -> DevicePolicy:
    """By a list of operations in place of a CUDA graph."""
    policy = DevicePolicy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(1), capture=True)
    policy.graphs = TapeGraphs()
    return policy


either = pytest.mark.parametrize("make", [eager, captured])


def collected(agent: Agent, make: Callable[[Agent], Policy], actors: list[Any]) -> tuple[TensorDict, dict[str, Any]]:
    """Steps ``[N, T]`` of a collector that begins anew in the middle, each part under the next actor."""
    envs, policy, parts = poles(), make(agent), []
    episodes = Episodes(STREAMS, envs.full_action_spec_unbatched)
    for actor in actors:
        collector = make_collector(CollectorSettings(), envs, agent, policy, episodes)
        for number, steps in enumerate(islice(collector, STEPS)):
            policy.actor = actor if number > STEPS // 2 else policy.actor
            parts.append(steps.clone())
            episodes.commit()
        collector.shutdown()
    envs.close()
    return torch.cat(parts, 1), {"episodes": episodes.state_dict(), "generator": policy.generator.get_state()}


@either
def test_a_collector_gives_the_same_steps(agent: Agent, make: Callable[[Agent], Policy]) -> None:
    """To the last bit, with resets, another actor in between, and a second collector that goes on where one ended."""
    other = deepcopy(agent.actor)
    with torch.no_grad():
        other.heads[0]["logits"].bias.copy_(torch.tensor([3.0, -3.0]))
    found, state = collected(agent, make, [other, agent.actor])
    expected, expected_state = collected(agent, plain, [other, agent.actor])
    assert found.shape == (STREAMS, 2 * STEPS) and found["is_init"].sum() > 4
    assert differences(found.to_dict(), expected.to_dict()) == []
    assert differences(state, expected_state) == []


@either
@pytest.mark.parametrize("deterministic", [False, True])
def test_an_evaluation_plays_the_same_episodes(
    agent: Agent, make: Callable[[Agent], Policy], deterministic: bool
) -> None:
    """Its first step brings no latents."""
    results = []
    for policy in (make(agent), plain(agent)):
        envs = poles()
        results.append(evaluate(policy, envs, 3, deterministic).returns)
        envs.close()
    assert results[0] == results[1]


@every_exploration
def test_actions_of_many_parts_and_images(exploration: Any) -> None:
    agent = agent_for(environment("Crane"))
    policy, reference = captured(agent), plain(agent)
    for count in (3, 3, 1):
        seen = torch.stack([Crane().reset() for _ in range(count)])
        seen["is_init"] = torch.ones(count, 1, dtype=torch.bool)
        with set_exploration_type(exploration):
            found, expected = policy(seen.clone()), reference(seen.clone())
        assert differences(found.to_dict(), expected.to_dict()) == []


def test_one_graph_per_number_of_environments(agent: Agent) -> None:
    policy, recorded = captured(agent), []
    record = policy.graphs.record
    policy.graphs.record = lambda *how: recorded.append(how) or record(*how)
    for count in (1, 2, 2, 1):
        policy(example_batch(agent, count, 3)[:, 0].exclude(*LATENTS))
    assert len(recorded) == 2


def test_a_step_that_cannot_be_captured_is_made_all_the_same(agent: Agent) -> None:
    policy, reference = captured(agent), plain(agent)
    seen = example_batch(agent, 2, 3)[:, 0].exclude(*LATENTS)

    def fails(*how: Any) -> None:
        policy.packed(policy.read(seen))
        raise RuntimeError("operation not permitted when stream is capturing")

    policy.graphs.record = fails
    with pytest.warns(UserWarning, match="no CUDA graph can hold it: operation not permitted"):
        found = policy(seen.clone())
    assert differences(found.to_dict(), reference(seen.clone()).to_dict()) == []
    assert not policy.capture


def test_acting_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's "meta" device, which holds no numbers: none is read, and no tensor made on the host."""
    agent = agent_for(environment("Crane"))
    policy = DevicePolicy(agent.encoder, agent.rssm, agent.actor).to("meta")
    rows = policy.read(example_batch(agent, 3, 2)[:, 0].exclude(*LATENTS).to("meta"))
    with torch.no_grad(), OnDevice(), NoLiterals():
        packed, latents = policy.packed(rows)
        again, _ = policy.packed(rows | latents)
    assert {tensor.device.type for tensor in tensors_in([packed, again, latents])} == {"meta"}
