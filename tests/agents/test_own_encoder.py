"""`build_agent` takes an encoder of one's own, and says what is missing in it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tensordict import NestedKey
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded

from dreamer_torchrl import Learner, Player, Size, build_agent
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.modules.spaces import Space

MOVE = Bounded(-1, 1, (6,))
TINY = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)


class Sum(nn.Module):
    """Reads one of two observations, and is as plain as an encoder may be."""

    in_keys, out_features = ["objects"], 7

    def __init__(self, spaces: Mapping[NestedKey, Space]) -> None:
        super().__init__()
        self.given = set(spaces)
        self.weight = nn.Parameter(torch.full((spaces["objects"].shape[-1], 7), 0.01))

    def forward(self, objects: torch.Tensor) -> torch.Tensor:
        return (objects @ self.weight).sum(-2)


OBJECTS = Composite(objects=Unbounded((5, 3)), clock=Unbounded((1,)))


def test_an_encoder_of_ones_own_learns_and_acts() -> None:
    """The RSSM has its width, an update moves its weights, and the policy asks for its key alone."""
    agent = build_agent(OBJECTS, MOVE, TINY, encoder=Sum)
    assert agent.encoder.given == {"objects", "clock"}
    assert agent.rssm.posterior.linear.weight.shape[1] == TINY.belief + 7
    learner, before = Learner(agent), agent.encoder.weight.detach().clone()
    for seed in range(2):  # the learning rate of the first update is zero
        learner.update(example_batch(agent, batch=2, length=4, seed=seed))
    assert (agent.encoder.weight != before).all()
    assert agent.policy.in_keys[0] == "objects"
    action, _ = Player(agent).act({"objects": np.ones((5, 3), np.float32)})
    assert action.shape == (6,)


@pytest.mark.parametrize("name", ["in_keys", "out_features"])
def test_an_encoder_that_does_not_say_what_it_reads_or_gives_is_refused(name: str) -> None:
    class Silent(nn.Module):
        def __init__(self, spaces: Mapping[NestedKey, Space]) -> None:
            super().__init__()
            for other in {"in_keys", "out_features"} - {name}:
                setattr(self, other, [*spaces])

    with pytest.raises(TypeError, match=f"The encoder Silent has no {name}: give it in_keys"):
        build_agent(OBJECTS, MOVE, TINY, encoder=Silent)
