"""What distributions draw, alone and inside TorchRL: a function of the noise, in any number, in any dtype."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule
from torch import Tensor
from torch.testing import assert_close
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.modules.distributions import BernoulliDist, BoundedNormal, Draw, OneHotDist, TwoHotDist


def each() -> dict[str, tuple[type[Draw], dict[str, Tensor], tuple[int, ...]]]:
    """Class, parameters, and the shape of the noise."""
    torch.manual_seed(3)
    return {
        "one_hot": (OneHotDist, {"logits": torch.randn(5, 2, 3)}, (5, 2)),
        "bounded_normal": (BoundedNormal, {"loc": torch.randn(5, 4), "scale": torch.randn(5, 4)}, (5, 4)),
    }


every_class = pytest.mark.parametrize("name", each())


@every_class
def test_without_noise_it_draws_its_own_in_any_number(name: str) -> None:
    kind, parameters, _ = each()[name]
    distribution = kind(**parameters)
    event = distribution.batch_shape + distribution.event_shape
    torch.manual_seed(0)
    first = distribution.sample()
    assert first.shape == event
    assert not distribution.sample().equal(first)
    torch.manual_seed(0)
    assert distribution.sample().equal(first)
    many = distribution.sample((7, 2))
    assert many.shape == (7, 2, *event)
    assert distribution.log_prob(many).shape == (7, 2, *distribution.batch_shape)
    assert distribution.sample(torch.Size()).shape == event


def test_modes() -> None:
    assert OneHotDist(torch.tensor([[0.0, 2.0, 1.0]])).mode.tolist() == [[0.0, 1.0, 0.0]]
    assert BoundedNormal(torch.tensor([0.5]), torch.zeros(1)).mode.item() == pytest.approx(math.tanh(0.5))
    assert BernoulliDist(torch.tensor([[-0.1], [0.1]])).mode.tolist() == [[0.0], [1.0]]
    two_hot = TwoHotDist(torch.randn(5, 255))
    assert two_hot.mode.equal(two_hot.mean)


@every_class
def test_parameters_in_bfloat16_are_computed_with_in_float32(name: str) -> None:
    kind, parameters, shape = each()[name]
    low = {key: value.bfloat16() for key, value in parameters.items()}
    distribution, expected = kind(**low), kind(**{key: value.float() for key, value in low.items()})
    value = expected.sample(torch.rand(shape))
    for result, wanted in (
        (distribution.mean, expected.mean),
        (distribution.mode, expected.mode),
        (distribution.log_prob(value), expected.log_prob(value)),
        (distribution.entropy(), expected.entropy()),
    ):
        assert_close(result, wanted, rtol=0, atol=0)
    assert distribution.sample().dtype is torch.float32


@every_class
def test_torchrl_draws_scores_and_takes_the_mode(name: str) -> None:
    kind, parameters, _ = each()[name]
    module = ProbabilisticTensorDictModule(
        in_keys=list(parameters),
        out_keys=["value"],
        distribution_class=kind,
        return_log_prob=True,
        log_prob_key="log_prob",
    )
    given_parameters = TensorDict(parameters, batch_size=[5])
    with set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(0)
        drawn = module(given_parameters.clone())
    torch.manual_seed(0)
    assert drawn["value"].equal(kind(**parameters).sample())
    assert_close(drawn["log_prob"], kind(**parameters).log_prob(drawn["value"]))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = module(given_parameters.clone())["value"]
    assert mode.equal(kind(**parameters).mode)
    assert isinstance(module.get_dist(given_parameters), kind)
