"""Classes that a mask forbids are never chosen, and the rest is a categorical distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.data import Categorical as CategoricalSpec

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.modules.actor import ActionDistribution, ActionSpace
from dreamer_torchrl.modules.distributions import sample_one_hot
from tests.objectives.examples import TINY

LARGEST = torch.finfo(torch.float32).max
SIZES = (2, 5, 3)
SPACE = ActionSpace(Composite(gear=OneHot(6), steer=Bounded(-1, 1, (2,)), tools=MultiOneHot(SIZES)))
every_mix = pytest.mark.parametrize("unimix", [0.0, 0.1])


def masks(*batch: int) -> Tensor:
    """Random flags of a gear and of tools, each variable with at least one that is True."""
    parts = []
    for classes in (6, *SIZES):
        one = torch.nn.functional.one_hot(torch.randint(classes, batch), classes).bool()
        parts.append((torch.rand(*batch, classes) < 0.4) | one)
    return torch.cat(parts, -1)


def of_classes(flat: Tensor) -> Tensor:
    """The flat action without its floats, which lie between gear and tools."""
    return torch.cat([flat[..., :6], flat[..., 8:]], -1)


@every_mix
@pytest.mark.parametrize("scale", [1.0, LARGEST])
def test_no_forbidden_class_is_chosen(scale: float, unimix: float) -> None:
    """In 20,000 draws, with the largest logits on forbidden classes and with draws at both ends."""
    mask = masks(20_000)
    parameters = scale * torch.rand(20_000, SPACE.parameter_size).mul(2).sub(1)
    allowed = torch.cat([mask[:, :6], torch.ones(20_000, 4).bool(), mask[:, 6:]], -1)
    parameters = torch.where(allowed, parameters, scale)
    policy = ActionDistribution(parameters, SPACE, unimix, mask=mask)
    draws = [policy.mode, policy.sample()]
    draws += [policy.sample(torch.full((20_000, SPACE.noise_size), end)) for end in (0.0, 1 - 2**-24)]
    for action in draws:
        chosen = of_classes(action)
        assert (chosen[~mask] == 0).all()
        assert (chosen.sum(-1) == 1 + len(SIZES)).all()
        assert policy.log_prob(action).isfinite().all() or scale == LARGEST
    explored = SPACE.explored(draws[0], 0.5, SPACE.noise(20_000), mask)
    assert (of_classes(explored)[~mask] == 0).all()
    assert (explored != draws[0]).any()


@every_mix
def test_agrees_with_the_categorical_of_the_allowed_classes(unimix: float) -> None:
    mask, parameters = masks(50), torch.randn(50, SPACE.parameter_size)
    policy = ActionDistribution(parameters, SPACE, unimix, mask=mask)
    action, plain = policy.sample(), ActionDistribution(parameters, SPACE)
    entropy, log_prob = plain.parts[1].entropy(), plain.parts[1].log_prob(action[:, 6:8])
    logits = torch.cat([parameters[:, :6], parameters[:, 10:]], -1)
    variables = (x.split((6, *SIZES), -1) for x in (logits, mask, of_classes(action)))
    for part, allowed, chosen in zip(*variables, strict=True):
        probs = part.masked_fill(~allowed, -math.inf).softmax(-1)
        probs = (1 - unimix) * probs + unimix * allowed / allowed.sum(-1, keepdim=True)
        theirs = Categorical(probs=probs)
        entropy, log_prob = entropy + theirs.entropy(), log_prob + theirs.log_prob(chosen.argmax(-1))
    assert_close(policy.entropy(), entropy)
    assert_close(policy.log_prob(action), log_prob)


@every_mix
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_gradients_reach_allowed_logits_alone_and_are_finite(scale: float, unimix: float) -> None:
    mask = torch.tensor([True, False, True, False]).expand(8, 4)
    logits = torch.where(mask, scale * torch.rand(8, 4).mul(2).sub(1), LARGEST).requires_grad_()
    policy = ActionDistribution(logits, ActionSpace(OneHot(4)), unimix, mask=mask)
    action = policy.rsample()
    for value in (policy.log_prob(action.detach()), 1e6 * policy.entropy(), policy.log_prob(action)):
        (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()
        assert scale > 1 or (gradient[mask] != 0).any()
    assert policy.log_prob(torch.eye(4)[1]).isfinite().all(), "a forbidden class is improbable, not impossible"


def test_a_variable_without_an_allowed_class_has_no_mask() -> None:
    parameters, space = torch.randn(7, 5), ActionSpace(OneHot(5))
    noise, none = space.noise(7), torch.zeros(7, 5).bool()
    masked, plain = (ActionDistribution(parameters, space, mask=mask) for mask in (none, None))
    assert torch.equal(masked.sample(noise), plain.sample(noise))
    assert torch.equal(masked.entropy(), plain.entropy())


def test_rounding_between_classes_chooses_no_forbidden_one() -> None:
    """As if a sum had grown at the second class, which has no probability."""
    mask = torch.tensor([True, False, True])
    assert sample_one_hot(torch.tensor([0.5, 1e-6, 0.5]), torch.tensor(0.5), mask).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("mask", "action", "message"),
    [
        (CategoricalSpec(2, (4,), dtype=torch.bool), OneHot(5), r"\[4\].*the action has 5 classes.*shape \[5\]"),
        (CategoricalSpec(2, (2, 2), dtype=torch.bool), MultiOneHot((2, 2)), r"\[2, 2\].*shape \[4\]"),
        (Unbounded((5,)), OneHot(5), "is continuous.*give booleans"),
        (
            CategoricalSpec(2, (2,), dtype=torch.bool),
            Bounded(-1, 1, (2,)),
            "0 classes: leave it out, or .*observed_action_mask",
        ),
    ],
)
def test_a_mask_of_another_form_is_refused_with_the_remedy(mask: TensorSpec, action: TensorSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Agent(Composite(observation=Unbounded((3,)), action_mask=mask), action, TINY)
