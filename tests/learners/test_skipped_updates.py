"""An update that is not finite changes nothing, and is never read back to find that out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torchrl.trainers.algorithms import DreamerV3Optimizer

from dreamer_torchrl.learners.learner import Learner, MakeOptimizer, example_batch
from tests.objectives.examples import tiny_learner
from tests.training.training_examples import differences

OPTIMIZERS: dict[str, MakeOptimizer | None] = {
    "laprop": None,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "torchrl": lambda parameters: DreamerV3Optimizer(parameters, lr=1e-3, warmup_steps=0),
}


def learned(learner: Learner) -> dict[str, Any]:
    """A copy of what an update may change, but for the generator, which has been used all the same."""
    state = copy.deepcopy(learner.state_dict())
    return {name: part for name, part in state.items() if name != "generator"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_learner_skips_a_loss_that_is_not_finite(optimizer: MakeOptimizer | None) -> None:
    learner = tiny_learner(reconstruction_scale=math.inf, optimizer=optimizer)
    before = learned(learner)
    metrics, _ = learner.update(example_batch(learner.agent, 2, 4))
    assert not metrics["finite"]
    assert learner.fault(metrics) == "loss_reconstruction"
    assert differences(learned(learner), before) == []


def test_a_fault_is_named_where_a_parameter_before_it_has_no_gradient() -> None:
    """Norms are those of parameters with a gradient, and so are the names."""
    learner = tiny_learner()
    first, second = learner.agent.encoder.parameters(), learner.agent.actor.parameters()
    next(first).requires_grad_(False)
    bad = next(second)
    bad.register_hook(torch.full_like(bad, math.inf).mul)
    metrics, _ = learner.update(example_batch(learner.agent, 2, 4))
    (name,) = (name for name, parameter in learner.agent.named_parameters() if parameter is bad)
    assert learner.fault(metrics) == f"gradient of {name}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_any_optimizer_trains(optimizer: MakeOptimizer | None) -> None:
    """And goes on from a saved state."""
    torch.manual_seed(0)
    learner = tiny_learner(optimizer=optimizer, warmup=0, learning_rate=1e-3)
    batch = example_batch(learner.agent, 2, 4)
    metrics = [learner.update(batch)[0] for _ in range(20)]
    assert metrics[-1]["objective"] < metrics[0]["objective"]
    other = tiny_learner(optimizer=optimizer, warmup=0, learning_rate=1e-3)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    learner.update(batch), other.update(batch)
    assert differences(learned(learner), learned(other)) == []
