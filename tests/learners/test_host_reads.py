"""No number of an update or a step of acting is read by the host: a thousand of each under a mode that would raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from dreamer_torchrl import Agent, Hyperparameters, Learner, build_agent
from dreamer_torchrl.agents.device_policy import DevicePolicy
from dreamer_torchrl.data.device_storage import DeviceStorage
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.learners.separate import SeparateLearner
from tests.learners.tape import NoHostReads, NoWaits
from tests.learners.test_learner import DONE, SEEN
from tests.objectives.examples import TINY

RATES = {"model": 6e-4, "actor": 8e-5, "value": 8e-5}


def tiny_agent() -> Agent:
    torch.manual_seed(0)
    return build_agent(SEEN, DONE, TINY)


def learner_of(kind: str, agent: Agent) -> Learner:
    h = Hyperparameters(imagination_length=3, warmup=2)
    if kind == "separate":
        return SeparateLearner(agent, h, compile=False, native=False, rates=RATES)
    return Learner(agent, h, compile=False, native=False)


@pytest.mark.parametrize("updates", [3, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_updates_and_acting_read_nothing_back(kind: str, updates: int) -> None:
    """What the host may know of them is read afterwards: whether they were finite."""
    agent = tiny_agent()
    learner, policy = learner_of(kind, agent), DevicePolicy(agent.encoder, agent.rssm, agent.actor)
    batches = [example_batch(agent, 2, 4, seed=seed) for seed in range(3)]
    rows = policy.read(batches[0][:, 0].clone().update(agent.latent_spec.expand(2).zero()))
    ended = torch.zeros(())
    for number in range(updates):
        with NoHostReads():
            ended += learner.step(batches[number % len(batches)]).metrics["finite"]
            _, latents = policy.packed(rows)
        rows |= latents
    assert ended == updates


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.cpu,
        bool,
        int,
        float,
        torch.nonzero,
        lambda one: one.to("cpu"),
        lambda one: torch.ones(3)[one.bool().expand(3)],
        lambda one: torch.equal(one, one),
    ],
)
def test_every_way_to_read_is_noticed(read: Any) -> None:
    one = torch.ones(())
    with pytest.raises(AssertionError, match="reads"), NoHostReads():
        read(one)


@pytest.mark.parametrize("sampler", ["online", "prioritized"])
def test_a_replay_on_a_device_waits_for_nothing(sampler: str) -> None:
    """On "meta", which holds no numbers, so that none can be read; copies there do not block."""
    agent = tiny_agent()
    replay = Replay(40, 2, 2, 4, storage=DeviceStorage(40, torch.device("meta")), device="meta")
    for number in range(60):
        steps = example_batch(agent, 2, 1, seed=number)
        steps["stream"] = torch.arange(2).reshape(2, 1, 1).expand(2, 2, 1).clone()
        with NoWaits():
            replay.extend(steps)
            if not replay.ready:
                continue
            batch, where = replay.sample()
            found = {"belief": torch.zeros(2, 4, TINY.belief, device="meta"), "state": batch["state"][:, 1:]}
            refreshed = replay.refresh(where, replay.brought(TensorDict(found, batch_size=[2, 4])))
        assert {value.device.type for value in batch.values(True, True)} == {"meta"}
        assert 0 < refreshed <= 8 and where.index.device.type == "cpu"
