"""What a profiler of a training shows: where in it a kernel was launched."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.keys import LATENTS
from dreamer_torchrl.learners.learner import example_batch
from tests.learners.test_host_reads import learner_of, tiny_agent


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("joint", {"world model", "actor", "critic", "backward"}), ("separate", {"model", "actor", "value"})],
)
def test_all_parts_are_named_while_a_profiler_runs(kind: str, parts: set[str]) -> None:
    agent = tiny_agent()
    learner, replay, steps = learner_of(kind, agent), Replay(20, 2, 2, 4), example_batch(agent, 2, 9)
    replay.extend(steps.set("stream", torch.arange(2).reshape(2, 1, 1).expand(2, 10, 1).clone()))
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        batch, where = replay.sample()
        _, latents = learner.update(batch)
        replay.refresh(where, latents)
        agent.policy(steps[:, 0].exclude(*LATENTS))
    named = {event.name for event in measured.events() if event.name.startswith("dreamer/")}
    found = parts | {"sample", "update", "optimizer", "refresh", "acting"}
    assert named == {f"dreamer/{name}" for name in found}
