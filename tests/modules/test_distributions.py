"""Distributions give the official numbers and agree with torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule
from torch import Tensor
from torch.testing import assert_close
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.modules.distributions import (
    BernoulliDist,
    BoundedNormal,
    Draw,
    OneHotDist,
    TwoHotDist,
    sample_one_hot,
    symexp,
    symlog,
    two_hot_bins,
    two_hot_neighbours,
    unimix_probs,
)
from dreamer_torchrl.modules.latents import CategoricalLatent

Table = dict[str, Tensor]
few = settings(max_examples=40, derandomize=True, deadline=None)
LAST_UNIFORM = 1 - 2**-24  # the largest that torch.rand gives
uniforms = st.floats(0, LAST_UNIFORM, width=32)


def two_hot_weights(value: Tensor, bins: Tensor) -> Tensor:
    below, above, weight = two_hot_neighbours(value, bins)
    weights = torch.zeros(*value.shape, len(bins), dtype=bins.dtype)
    weights.scatter_add_(-1, below.unsqueeze(-1), (1 - weight).unsqueeze(-1))
    return weights.scatter_add_(-1, above.unsqueeze(-1), weight.unsqueeze(-1))


def test_symlog_and_symexp_are_official(golden: Table) -> None:
    for name, function in (("symlog", symlog), ("symexp", symexp)):
        assert_close(function(golden[f"{name}/x"]), golden[f"{name}/y"], rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("count", [255, 5, 6])
def test_bins_are_official_and_mirrored(golden: Table, count: int) -> None:
    bins = two_hot_bins(count)
    assert_close(bins, golden[f"twohot/bins{count}"], rtol=2e-6, atol=1e-10)
    assert bins.equal(-bins.flip(0))
    assert TwoHotDist(torch.zeros(3, count)).mean.equal(torch.zeros(3, 1))  # equal logits predict exactly zero


def test_two_hot_encoding_is_official(golden: Table) -> None:
    weights = two_hot_weights(golden["twohot/targets"], golden["twohot/bins255"])
    assert_close(weights, golden["twohot/encoding"], rtol=0, atol=2e-6)


def test_two_hot_loss_its_gradient_and_the_prediction_are_official(golden: Table) -> None:
    logits = golden["twohot/logits"].clone().requires_grad_()
    loss = -TwoHotDist(logits).log_prob(golden["twohot/targets"].unsqueeze(-1))
    assert_close(loss, golden["twohot/loss"], rtol=1e-5, atol=1e-4)
    loss.sum().backward()
    assert_close(logits.grad, golden["twohot/dloss_dlogits"], rtol=0, atol=1e-5)
    prediction = TwoHotDist(golden["twohot/logits"]).mean
    assert_close(prediction.squeeze(-1), golden["twohot/pred"], rtol=1e-3, atol=1e-3)


def test_one_hot_is_official(golden: Table) -> None:
    a, b = OneHotDist(golden["onehot/logits_a"]), OneHotDist(golden["onehot/logits_b"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(a.probs, golden["onehot/probs_a_unimix"], **close)
    assert_close(a.log_probs, golden["onehot/logprobs_a_unimix"], **close)
    latent = CategoricalLatent(*a.event_shape)
    for kl in latent.kl(a.logits, b.logits):
        assert_close(kl, golden["onehot/kl_ab_sum"], **close)
    assert_close(latent.entropy(a.logits), golden["onehot/entropy_a_sum"], **close)
    assert_close(-(a.probs * a.log_probs).sum(-1), golden["onehot/entropy_a_per_var"], **close)
    assert_close(a.entropy(), golden["onehot/entropy_a_sum"], **close)
    event = golden["onehot/event"].float()
    assert_close((a.log_probs * event).sum(-1), golden["onehot/logp_a_event"], **close)
    assert_close(a.log_prob(event), golden["onehot/logp_a_event"].sum(-1), **close)


def test_the_gradient_of_a_sample_is_the_official_straight_through_one(golden: Table) -> None:
    logits = golden["onehot/logits_a"].clone().requires_grad_()
    sample = OneHotDist(logits).rsample()
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    (sample * golden["onehot/st_weights"]).sum().backward()
    assert_close(logits.grad, golden["onehot/straight_through_grad"], rtol=1e-5, atol=1e-6)


def test_the_discrete_policy_without_unimix_is_official(golden: Table) -> None:
    logits = golden["categorical/logits"].unsqueeze(-2)
    event = torch.nn.functional.one_hot(golden["categorical/event"].long(), 4).float().unsqueeze(-2)
    policy = OneHotDist(logits, unimix=0.0)
    assert_close(policy.log_prob(event), golden["categorical/logp"], rtol=1e-5, atol=1e-5)
    assert_close(policy.entropy(), golden["categorical/entropy"], rtol=1e-5, atol=1e-5)


def test_binary_is_official_for_hard_and_soft_targets(golden: Table) -> None:
    head = BernoulliDist(golden["binary/logit"].unsqueeze(-1))
    target = golden["binary/target"].unsqueeze(-1)
    assert ((target > 0) & (target < 1)).any()
    assert_close(-head.log_prob(target), golden["binary/loss"], rtol=1e-5, atol=1e-6)
    assert_close(head.mean.squeeze(-1), golden["binary/prob1"], rtol=1e-5, atol=1e-6)


def test_bounded_normal_is_official(golden: Table) -> None:
    policy = BoundedNormal(golden["bounded_normal/raw_mean"], golden["bounded_normal/raw_std"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(policy.mean, golden["bounded_normal/mean"], **close)
    assert_close(policy.stddev, golden["bounded_normal/std"], **close)
    assert_close(policy.log_prob(golden["bounded_normal/event"]), golden["bounded_normal/logp_sum"], **close)
    assert_close(policy.entropy(), golden["bounded_normal/entropy_sum"], **close)


@few
@given(st.floats(-(10**8.6), 10**8.6), st.sampled_from([255, 5, 6]))
def test_two_hot_encoding_stands_for_its_target(target: float, count: int) -> None:
    bins, value = two_hot_bins(count).double(), torch.tensor([target], dtype=torch.float64)
    weights = two_hot_weights(value, bins)
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(1, dtype=torch.float64))
    assert_close((weights * bins).sum(-1), value, rtol=1e-9, atol=1e-12)
    assert weights.count_nonzero() <= 2
    below, above, _ = two_hot_neighbours(value, bins)
    assert (above - below).item() in (0, 1)
    assert bins[below] <= value <= bins[above]


@pytest.mark.parametrize(("target", "index"), [(-1e9, 0), (1e9, 254), (-math.inf, 0), (math.inf, 254)])
def test_a_target_outside_is_the_bin_at_the_end(target: float, index: int) -> None:
    weights = two_hot_weights(torch.tensor([target]), two_hot_bins())
    assert weights.sum() == 1
    assert weights[0, index] == 1


def test_no_gradient_flows_to_a_two_hot_target() -> None:
    logits, target = torch.randn(3, 255, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    TwoHotDist(logits).log_prob(target).sum().backward()
    assert logits.grad is not None
    assert target.grad is None


probabilities = st.lists(
    st.one_of(st.floats(0, 1, width=32), st.floats(0, 2.0**-40, width=32)), min_size=1, max_size=12
).filter(lambda values: sum(values) > 2.0**-100)


@few
@given(probabilities, uniforms)
def test_a_sample_is_always_exactly_one_hot(values: list[float], uniform: float) -> None:
    probs = torch.tensor(values)
    probs = probs / probs.sum()
    sample = sample_one_hot(probs, torch.tensor(uniform))
    assert sorted(sample.tolist()) == [0.0] * (len(values) - 1) + [1.0]
    assert probs[sample.argmax()] > 0


def test_classes_come_as_often_as_they_should() -> None:
    probs = unimix_probs(torch.randn(1, 7), 0.01)
    noise = (torch.arange(10_000) + 0.5) / 10_000  # evenly spread: each count is exact up to one
    counts = sample_one_hot(probs.expand(10_000, 7), noise).sum(0)
    assert_close(counts, probs[0] * 10_000, rtol=0, atol=1.01)


logit_rows = st.lists(st.floats(-50, 50), min_size=6, max_size=6).map(lambda v: torch.tensor(v).reshape(1, 2, 3))


@few
@given(logit_rows, st.sampled_from([0.0, 0.01, 0.3]))
def test_unimix_is_a_floor_under_all_probabilities(logits: Tensor, unimix: float) -> None:
    probs = OneHotDist(logits, unimix).probs
    assert (probs >= unimix / 3 * (1 - 1e-6)).all()
    assert_close(probs.sum(-1), torch.ones(1, 2))
    assert_close(probs, (1 - unimix) * logits.softmax(-1) + unimix / 3)


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
    assert BernoulliDist(torch.tensor([[-0.1], [0.0], [0.1]])).mode.tolist() == [[0.0], [0.0], [1.0]]
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


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_unpacking_undoes_packing(classes: int, dtype: torch.dtype) -> None:
    """Also of the last class, which one byte does not hold beyond 256 classes."""
    latent = CategoricalLatent(variables=2, classes=classes)
    state = torch.zeros(3, 2, classes)
    state[:, 0, 0] = state[:, 1, -1] = 1
    packed = latent.pack(state)
    assert (packed.dtype, packed[0].tolist()) == (dtype, [0, classes - 1])
    assert torch.equal(latent.unpack(packed), state)
    assert latent.unpack(state) is state


def test_more_classes_than_indices_are_refused() -> None:
    """Before anything is stored wrongly."""
    with pytest.raises(ValueError, match="classes=40000 are more than"):
        CategoricalLatent(variables=1, classes=40000).pack(torch.zeros(1, 40000))
