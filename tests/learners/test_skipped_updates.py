"""An update that is not finite changes nothing, and is never read back to find that out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamer_torchrl.learners.laprop import LaProp
from dreamer_torchrl.learners.learner import Learner, example_batch
from tests.objectives.examples import tiny_learner
from tests.training.training_examples import differences

both_ways = pytest.mark.parametrize("foreach", [False, True])


def weights(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (3,), ())]


def learned(learner: Learner) -> dict[str, Any]:
    """A copy of what an update may change, but for the generator, which has been used all the same."""
    state = copy.deepcopy(learner.state_dict())
    return {name: part for name, part in state.items() if name != "generator"}


def stepped(where: Tensor | None, poison: float, foreach: bool) -> tuple[list[nn.Parameter], LaProp]:
    """Three updates, the second of which has a poisoned gradient and this ``where``."""
    parameters = weights(0)
    optimizer = LaProp(parameters, lr=0.1, warmup=2, foreach=foreach)
    for number in range(3):
        for parameter, gradient in zip(parameters, weights(1 + number), strict=True):
            parameter.grad = gradient.detach() + (poison if number == 1 else 0)
        optimizer.step(where=where if number == 1 else torch.tensor(True))
    return parameters, optimizer


@both_ways
@pytest.mark.parametrize("poison", [0.0, math.nan, math.inf])
def test_a_step_that_is_switched_off_leaves_no_trace(poison: float, foreach: bool) -> None:
    parameters, optimizer = stepped(torch.tensor(False), poison, foreach)
    others = weights(0)
    other = LaProp(others, lr=0.1, warmup=2, foreach=foreach)
    for number in (0, 2):
        for parameter, gradient in zip(others, weights(1 + number), strict=True):
            parameter.grad = gradient.detach()
        other.step()
    assert differences(optimizer.state_dict(), other.state_dict()) == []
    assert differences([p.data for p in parameters], [p.data for p in others]) == []


@both_ways
def test_a_step_that_is_switched_on_is_the_plain_one(foreach: bool) -> None:
    on, optimizer = stepped(torch.tensor(True), 0.0, foreach)
    plain, other = stepped(None, 0.0, foreach)
    assert differences(optimizer.state_dict(), other.state_dict()) == []
    assert differences([p.data for p in on], [p.data for p in plain]) == []


def test_a_learner_skips_a_loss_that_is_not_finite() -> None:
    learner = tiny_learner(reconstruction_scale=math.inf)
    before = learned(learner)
    metrics, _ = learner.update(example_batch(learner.agent, 2, 4))
    assert not metrics["finite"]
    assert learner.fault(metrics) == "loss_reconstruction"
    assert differences(learned(learner), before) == []


def test_a_gradient_alone_is_named() -> None:
    learner = tiny_learner()
    agent = learner.agent
    name, parameter = next(iter(agent.named_parameters()))
    handle = parameter.register_hook(torch.full_like(parameter, math.inf).mul)
    metrics, _ = learner.update(example_batch(agent, 2, 4))
    assert not metrics["finite"]
    assert learner.fault(metrics) == f"gradient of {name}"
    handle.remove()
    before = learned(learner)
    metrics, _ = learner.update(example_batch(agent, 2, 4))
    assert metrics["finite"]
    assert differences(learned(learner), before) != []
