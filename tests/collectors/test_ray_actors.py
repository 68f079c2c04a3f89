"""A run whose environments are in Ray actors learns; actors and the cluster may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from dreamer_torchrl import build_agent
from dreamer_torchrl.collectors.episodes import Episodes
from dreamer_torchrl.collectors.make_collector import make_collector
from dreamer_torchrl.collectors.stream_envs import ClusterLost, StreamEnvs
from dreamer_torchrl.config.schema import CollectorSettings
from tests.agents.acting_examples import TINY
from tests.collectors.troubles import walk

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow  # a cluster takes seconds to start


@pytest.fixture
def made() -> Iterator[tuple]:
    """Two streams in two actors of a new cluster, with what follows them."""
    from dreamer_torchrl.collectors.ray_actors import RayActors

    envs = StreamEnvs([partial(walk, place, {}) for place in range(2)])
    agent = build_agent(envs.observation_spec, envs.full_action_spec, TINY)
    episodes = Episodes(2, envs.full_action_spec_unbatched)
    collector = make_collector(CollectorSettings("ray"), envs, agent, agent.policy, episodes)
    assert isinstance(collector, RayActors)
    yield envs, agent, episodes, collector
    collector.shutdown()


def test_a_killed_actor_is_replaced_and_no_step_is_lost(made: tuple) -> None:
    envs, agent, episodes, collector = made
    streams: list[list] = [[], []]
    killed = None  # at this length of its stream
    for number, steps in enumerate(collector):
        episodes.commit()
        for step in steps.reshape(-1):
            streams[int(step["stream"])].append(step)
        if number == 20:
            collector.update_policy_weights_(agent.policy)
            os.kill(ray.get(collector.actors[0].process.remote()), signal.SIGKILL)
            killed = len(streams[0])
        if killed and len(streams[0]) > killed + 40:
            break
    (note,) = envs.notes
    assert "Ray actor 0 failed and is replaced; environments 0 go on there" in note
    for stream in streams:
        joined = torch.stack(stream)
        # an episode is never broken off: a first step follows a last one, and nothing else does
        assert torch.equal(joined["done"][:-1], joined["is_init"][1:])


def test_a_dead_head_is_a_named_error(made: tuple) -> None:
    _, _, episodes, collector = made
    next(iter(collector))
    episodes.commit()
    collector.head = collector.head[0], 1  # where nothing answers
    with pytest.raises(ClusterLost, match="does not answer: its head died"):
        collector.check_head()
