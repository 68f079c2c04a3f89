"""Distributions give the official numbers and agree with torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as td
from torch.testing import assert_close

from dreamer_torchrl.modules.distributions import (
    Binary,
    BoundedNormal,
    Draw,
    OneHot,
    TwoHot,
    categorical_kl,
    sample_one_hot,
    straight_through,
    symexp,
    symlog,
    two_hot_bins,
    two_hot_neighbours,
    unimix_probs,
)

Table = dict[str, Tensor]
few = settings(max_examples=40, derandomize=True, deadline=None)
LAST_UNIFORM = 1 - 2**-24  # the largest that torch.rand gives
uniforms = st.floats(0, LAST_UNIFORM, width=32)


def two_hot_weights(value: Tensor, bins: Tensor) -> Tensor:
    below, above, weight = two_hot_neighbours(value, bins)
    weights = torch.zeros(*value.shape, len(bins), dtype=bins.dtype)
    weights.scatter_add_(-1, below.unsqueeze(-1), (1 - weight).unsqueeze(-1))
    return weights.scatter_add_(-1, above.unsqueeze(-1), weight.unsqueeze(-1))


# Official tables.


@pytest.mark.parametrize("function", [symlog, symexp], ids=["symlog", "symexp"])
def test_symlog_and_symexp_are_official(golden: Table, function: object) -> None:
    name = function.__name__
    assert_close(function(golden[f"{name}/x"]), golden[f"{name}/y"], rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("count", [255, 5, 6])
def test_bins_are_official_and_mirrored(golden: Table, count: int) -> None:
    bins = two_hot_bins(count)
    assert_close(bins, golden[f"twohot/bins{count}"], rtol=2e-6, atol=1e-10)
    assert bins.equal(-bins.flip(0))


def test_two_hot_encoding_is_official(golden: Table) -> None:
    weights = two_hot_weights(golden["twohot/targets"], golden["twohot/bins255"])
    assert_close(weights, golden["twohot/encoding"], rtol=0, atol=2e-6)


def test_two_hot_loss_and_its_gradient_are_official(golden: Table) -> None:
    logits = golden["twohot/logits"].clone().requires_grad_()
    loss = -TwoHot(logits).log_prob(golden["twohot/targets"].unsqueeze(-1))
    assert_close(loss, golden["twohot/loss"], rtol=1e-5, atol=1e-4)
    loss.sum().backward()
    assert_close(logits.grad, golden["twohot/dloss_dlogits"], rtol=0, atol=1e-5)


def test_two_hot_prediction_is_official(golden: Table) -> None:
    prediction = TwoHot(golden["twohot/logits"]).mean
    assert_close(prediction.squeeze(-1), golden["twohot/pred"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [255, 5, 6])
def test_equal_logits_predict_exactly_zero(count: int) -> None:
    assert TwoHot(torch.zeros(3, count)).mean.equal(torch.zeros(3, 1))


def test_one_hot_is_official(golden: Table) -> None:
    a, b = OneHot(golden["onehot/logits_a"]), OneHot(golden["onehot/logits_b"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(a.probs, golden["onehot/probs_a_unimix"], **close)
    assert_close(a.log_probs, golden["onehot/logprobs_a_unimix"], **close)
    assert_close(categorical_kl(a.probs, b.probs), golden["onehot/kl_ab_per_var"], **close)
    assert_close(a.kl(b), golden["onehot/kl_ab_sum"], **close)
    assert_close(-(a.probs * a.log_probs).sum(-1), golden["onehot/entropy_a_per_var"], **close)
    assert_close(a.entropy(), golden["onehot/entropy_a_sum"], **close)
    event = golden["onehot/event"].float()
    assert_close((a.log_probs * event).sum(-1), golden["onehot/logp_a_event"], **close)
    assert_close(a.log_prob(event), golden["onehot/logp_a_event"].sum(-1), **close)


def test_the_gradient_of_a_sample_is_the_official_straight_through_one(golden: Table) -> None:
    logits = golden["onehot/logits_a"].clone().requires_grad_()
    sample = OneHot(logits).rsample()
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    (sample * golden["onehot/st_weights"]).sum().backward()
    assert_close(logits.grad, golden["onehot/straight_through_grad"], rtol=1e-5, atol=1e-6)


def test_the_discrete_policy_without_unimix_is_official(golden: Table) -> None:
    logits = golden["categorical/logits"].unsqueeze(-2)
    event = torch.nn.functional.one_hot(golden["categorical/event"].long(), 4).float().unsqueeze(-2)
    policy = OneHot(logits, unimix=0.0)
    assert_close(policy.log_prob(event), golden["categorical/logp"], rtol=1e-5, atol=1e-5)
    assert_close(policy.entropy(), golden["categorical/entropy"], rtol=1e-5, atol=1e-5)


def test_binary_is_official_for_hard_and_soft_targets(golden: Table) -> None:
    head = Binary(golden["binary/logit"].unsqueeze(-1))
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


# Properties.


@few
@given(st.floats(-1e8, 1e8))
def test_symexp_undoes_symlog(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    assert_close(symexp(symlog(value)), value)
    assert_close(symlog(-value), -symlog(value), rtol=0, atol=0)


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


@pytest.mark.parametrize("index", [0, 1, 127, 128, 254])
def test_a_target_on_a_bin_is_that_bin(index: int) -> None:
    bins = two_hot_bins()
    assert two_hot_weights(bins[index], bins).argmax() == index
    assert two_hot_weights(bins[index], bins).max() == 1


@pytest.mark.parametrize(("target", "index"), [(-1e9, 0), (1e9, 254), (-math.inf, 0), (math.inf, 254)])
def test_a_target_outside_is_the_bin_at_the_end(target: float, index: int) -> None:
    weights = two_hot_weights(torch.tensor([target]), two_hot_bins())
    assert weights.sum() == 1
    assert weights[0, index] == 1


def test_no_gradient_flows_to_a_two_hot_target() -> None:
    logits, target = torch.randn(3, 255, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    TwoHot(logits).log_prob(target).sum().backward()
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


@pytest.mark.parametrize("uniform", [0.0, LAST_UNIFORM])
def test_a_sample_is_one_hot_at_the_ends_of_the_noise(uniform: float) -> None:
    probs = unimix_probs(torch.randn(5000, 33) * 10, 0.0)  # their float32 sums are often above or below 1
    sample = sample_one_hot(probs, torch.full((5000,), uniform))
    assert_close(sample.sum(-1), torch.ones(5000), rtol=0, atol=0)
    assert (sample >= 0).all()
    assert ((probs * sample).sum(-1) > 0).all()


def test_classes_come_as_often_as_they_should() -> None:
    probs = unimix_probs(torch.randn(1, 7), 0.01)
    noise = (torch.arange(10_000) + 0.5) / 10_000  # evenly spread: each count is exact up to one
    counts = sample_one_hot(probs.expand(10_000, 7), noise).sum(0)
    assert_close(counts, probs[0] * 10_000, rtol=0, atol=1.01)


def test_greater_noise_gives_a_later_class() -> None:
    samples = sample_one_hot(torch.full((4, 4), 0.25), torch.tensor([0.0, 0.25, 0.5, 0.99]))
    assert samples.equal(torch.eye(4))


def test_straight_through_has_the_sample_as_value_and_the_probabilities_as_gradient() -> None:
    probs = torch.tensor([0.2, 0.8], requires_grad=True)
    one_hot = torch.tensor([1.0, 0.0])
    value = straight_through(one_hot, probs)
    assert value.equal(one_hot)
    (value * torch.tensor([3.0, 5.0])).sum().backward()
    assert_close(probs.grad, torch.tensor([3.0, 5.0]))


logit_rows = st.lists(st.floats(-50, 50), min_size=6, max_size=6).map(lambda v: torch.tensor(v).reshape(1, 2, 3))


@few
@given(logit_rows, logit_rows)
def test_kl_is_never_negative_and_zero_for_equal(a: Tensor, b: Tensor) -> None:
    for one, other in (
        (OneHot(a), OneHot(b)),
        (TwoHot(a), TwoHot(b)),
        (Binary(a), Binary(b)),
        (BoundedNormal(a, b), BoundedNormal(b, a)),
    ):
        assert (one.kl(other) >= -1e-5).all()
        assert_close(one.kl(one), torch.zeros_like(one.kl(one)), rtol=0, atol=1e-5)


@few
@given(logit_rows, st.sampled_from([0.0, 0.01, 0.3]))
def test_unimix_is_a_floor_under_all_probabilities(logits: Tensor, unimix: float) -> None:
    probs = OneHot(logits, unimix).probs
    assert (probs >= unimix / 3 * (1 - 1e-6)).all()
    assert_close(probs.sum(-1), torch.ones(1, 2))
    assert_close(probs, (1 - unimix) * logits.softmax(-1) + unimix / 3)


@pytest.mark.parametrize("classes", [3, 40])
def test_one_vector_of_logits_is_a_batch_of_one(classes: int) -> None:
    logits = torch.randn(classes)
    assert_close(unimix_probs(logits, 0.01), unimix_probs(logits.expand(2, 5, classes), 0.01)[1, 2])


# The same facts as torch's own distributions.


def pairs() -> dict[str, tuple[Draw, td.Distribution, Tensor]]:
    """Ours, theirs, and a value for both."""
    torch.manual_seed(1)
    logits, loc, scale = torch.randn(5, 2, 3).double(), torch.randn(5, 4).double(), torch.randn(5, 4).double()
    single = torch.randn(5, 1).double()
    one_hot = sample_one_hot(torch.full((5, 2, 3), 1 / 3).double(), torch.rand(5, 2).double())
    normal = td.Normal(loc.tanh(), 0.9 * torch.sigmoid(scale + 2) + 0.1)
    return {
        "one_hot": (OneHot(logits), td.OneHotCategorical(OneHot(logits).probs), one_hot),
        "no_unimix": (OneHot(logits, 0.0), td.OneHotCategorical(logits=logits), one_hot),
        "bounded_normal": (BoundedNormal(loc, scale), normal, torch.randn(5, 4).double()),
        "binary": (Binary(single), td.Bernoulli(logits=single), torch.ones(5, 1).double()),
    }


@pytest.mark.parametrize("name", pairs())
def test_log_prob_and_entropy_agree_with_torch(name: str) -> None:
    ours, theirs, value = pairs()[name]
    theirs = td.Independent(theirs, 1)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert_close(ours.log_prob(value), theirs.log_prob(value))
    assert_close(ours.entropy(), theirs.entropy())


def test_two_hot_agrees_with_a_categorical_over_its_bins() -> None:
    logits = torch.randn(5, 255).double()
    ours, theirs = TwoHot(logits), td.Categorical(logits=logits)
    assert (ours.batch_shape, ours.event_shape) == ((5,), (1,))
    assert_close(ours.entropy(), theirs.entropy())
    on_bins = torch.tensor([0, 1, 127, 200, 254])
    assert_close(ours.log_prob(ours.bins[on_bins].unsqueeze(-1)), theirs.log_prob(on_bins))
    assert_close(ours.mean.squeeze(-1), (theirs.probs * ours.bins).sum(-1))


def test_kl_agrees_with_torch() -> None:
    torch.manual_seed(2)
    a, b, c, d = torch.randn(4, 5, 2, 3).double().unbind()

    def normal(loc: Tensor, scale: Tensor) -> td.Distribution:
        return td.Normal(loc.tanh(), 0.9 * torch.sigmoid(scale + 2) + 0.1)

    for ours, theirs in (
        (OneHot(a).kl(OneHot(b)), td.kl_divergence(*[td.Categorical(OneHot(x).probs) for x in (a, b)])),
        (BoundedNormal(a, b).kl(BoundedNormal(c, d)), td.kl_divergence(normal(a, b), normal(c, d))),
        (Binary(a).kl(Binary(b)), td.kl_divergence(td.Bernoulli(logits=a), td.Bernoulli(logits=b))),
    ):
        assert_close(ours, theirs.sum(-1))
    two_hot = td.kl_divergence(td.Categorical(logits=a), td.Categorical(logits=b))
    assert_close(TwoHot(a).kl(TwoHot(b)), two_hot)
