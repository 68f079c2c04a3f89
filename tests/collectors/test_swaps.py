"""Other TorchRL collectors and batched environments in place of ours: the same correct steps reach the replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType

from dreamer_torchrl import build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.collectors.episodes import Episodes, steps_of
from dreamer_torchrl.collectors.make_collector import make_collector
from dreamer_torchrl.collectors.stream_env import StreamEnv, episode_seed
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.schema import CollectorSettings
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.envs import make_env
from tests.agents.acting_examples import TINY

STREAMS, STEPS = 2, 80


def pole(place: int) -> StreamEnv:
    """CartPole as stream number ``place``."""
    torch.set_num_threads(1)
    return StreamEnv(make_env("gym", {"id": "CartPole-v1"}), entropy=(place,), stream=place)


def of_torchrl(batched: type, envs: StreamEnvs, agent: Agent, episodes: Episodes) -> BaseCollector:
    """TorchRL's own collector with its own way to run several environments."""
    env = batched(STREAMS, [partial(pole, place) for place in range(STREAMS)])
    env = TransformedEnv(env, agent.primer())  # ParallelEnv carries only the entries of its specs from step to step
    return Collector(
        env,
        agent.policy,
        frames_per_batch=STREAMS * 8,
        postproc=steps_of,
        trust_policy=True,
        exploration_type=ExplorationType.RANDOM,
    )


def of_ours(kind: Any, envs: StreamEnvs, agent: Agent, episodes: Episodes) -> BaseCollector:
    """Those that the setting `collector` names."""
    return make_collector(CollectorSettings(kind), envs, agent, agent.policy, episodes)


SWAPS = {
    "Collector": partial(of_ours, "sync"),
    "AsyncBatchedCollector": partial(of_ours, "async"),
    "MultiSyncCollector": partial(of_ours, "multi_sync"),
    "SerialEnv": partial(of_torchrl, SerialEnv),
    "ParallelEnv": partial(of_torchrl, ParallelEnv),
}


PROCESSES = {"MultiSyncCollector", "ParallelEnv"}
"""Those whose processes take long to start."""


@pytest.mark.parametrize(
    "swap", [pytest.param(swap, marks=pytest.mark.slow if swap in PROCESSES else ()) for swap in SWAPS]
)
def test_the_same_steps_reach_the_replay(swap: str, threads: Callable[[int], None]) -> None:
    threads(torch.get_num_threads())  # ParallelEnv changes it
    make: Callable[..., BaseCollector] = SWAPS[swap]
    envs = StreamEnvs([partial(pole, place) for place in range(STREAMS)])
    torch.manual_seed(0)
    agent = build_agent(envs.observation_spec, envs.full_action_spec, TINY)
    collector = make(envs, agent, Episodes(STREAMS, envs.full_action_spec_unbatched))
    replay = Replay(capacity=1000, streams=STREAMS, batch=2, length=4)
    streams: list[list[TensorDictBase]] = [[] for _ in range(STREAMS)]
    for steps in collector:
        replay.extend(steps)
        if "Sync" in swap or "Async" in swap:  # the others share the agent's weights
            collector.update_policy_weights_(agent.policy)
        for step in steps.reshape(-1) if steps.ndim == 1 else steps.transpose(0, 1).reshape(-1):
            streams[int(step["stream"])].append(step)
        if min(map(len, streams)) >= STEPS:
            break
    collector.shutdown()
    batch, _ = replay.sample()
    assert batch.shape == (2, 5)
    for place, stream in enumerate(streams):
        check(torch.stack(stream), place, agent)


def check(steps: TensorDictBase, place: int, agent: Agent) -> None:
    """Observations, rewards and ends are those of the environment played by hand; latents are those of these steps."""
    env, number, arrived = make_env("gym", {"id": "CartPole-v1"}), 0, None
    belief = torch.zeros(1, TINY.belief)
    state = torch.zeros(1, TINY.stochastic * TINY.classes)
    action = torch.zeros(1, 2)
    for time, step in enumerate(steps):
        if arrived is None or arrived["done"]:
            env.set_seed(episode_seed((place,), number))
            arrived, number, reward = env.reset(), number + 1, 0.0
            belief, state, action = torch.zeros_like(belief), torch.zeros_like(state), torch.zeros_like(action)
            assert step["is_init"], time
        else:
            arrived = env.step(arrived.set("action", steps["action"][time - 1]))["next"]
            reward = float(arrived["reward"])
            assert not step["is_init"], time
        assert torch.equal(step["observation"], arrived["observation"]), time
        assert float(step["reward"]) == reward
        assert bool(step["done"]) == bool(arrived["done"]) and bool(step["terminated"]) == bool(arrived["terminated"])
        with torch.no_grad():
            belief = agent.rssm.core(belief, state, action)
        torch.testing.assert_close(step["belief"].unsqueeze(0), belief)
        state, action = step["state"].flatten().unsqueeze(0), step["action"].float().unsqueeze(0)
    assert number > 1
