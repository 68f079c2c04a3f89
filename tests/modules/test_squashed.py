"""The bounded actions of Dreamer V1 and V2 are the official ones, with their gradients."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, OneHot

from dreamer_torchrl.modules import ActionDistribution, ActionSpace, Actor, BoundedNormal, TanhNormal, TruncatedNormal
from tests.objectives.examples import golden, part

Table = dict[str, Tensor]


@pytest.fixture(scope="module")
def v1() -> Table:
    return part(golden("tables_v1.npz", "golden_family"), "action_decoder/")


@pytest.fixture(scope="module")
def v2() -> Table:
    return golden("tables_v2.npz", "golden_family")


def truncated(table: Table, init_std: float) -> TruncatedNormal:
    policy = TruncatedNormal(table["out"], table["std_raw"], init_std)
    policy.loc.requires_grad_()
    policy.scale.requires_grad_()
    return policy


@pytest.mark.parametrize("init_std", [0, 1])
def test_the_truncated_normal_is_official(v2: Table, init_std: int) -> None:
    """Values and gradients; with the gradient of the inverse distribution function the sample's would be others."""
    table = part(v2, f"trunc_normal/init{init_std}/")
    policy = truncated(table, init_std)
    sample = policy.draw_of(table["raw_sample"])
    found = {"sample": sample, "logprob": policy.log_prob(table["sample"]), "entropy": policy.entropy()}
    others = {"mean": policy.loc, "std": policy.scale, "mode": policy.mode}
    for name, value in (found | others).items():
        assert_close(value.detach(), table[name], rtol=1e-5, atol=1e-5)
    for name, value in found.items():
        weighted = (table[f"w_{name}"] * value).sum()
        grads = torch.autograd.grad(weighted, [policy.loc, policy.scale], retain_graph=True, materialize_grads=True)
        for of, grad in zip(("mean", "std"), grads, strict=True):
            assert_close(grad, table[f"d{name}_d{of}"], rtol=1e-4, atol=1e-4)
    # The gradient of the inverse distribution function, which torch users would expect, is another one.
    normal, raw = td.Normal(policy.loc.double(), policy.scale.double()), table["raw_sample"].double()
    low, high = normal.cdf(torch.tensor(-1.0)), normal.cdf(torch.tensor(1.0))
    share = ((normal.cdf(raw) - low) / (high - low)).detach()
    inverse = normal.icdf(low + share * (high - low))
    assert_close(inverse, raw, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad((table["w_sample"] * inverse).sum(), policy.loc)
    assert (grad - table["dsample_dmean"]).abs().max() > 0.1


def test_a_draw_fills_the_interval_as_a_truncated_normal_does() -> None:
    """Against the distribution function, also where the mean lies at an end; none is rejected or heaped at the ends."""
    loc, raw = torch.tensor([-9.0, -0.3, 0.0, 2.0]), torch.tensor([-2.0, 9.0, -9.0, 0.0])
    policy = TruncatedNormal(loc, raw)
    draws = policy.sample((20_000,)).double()
    assert draws.abs().max() <= 1 - 9e-7
    normal = td.Normal(policy.loc.double(), policy.scale.double())
    low, high = normal.cdf(torch.tensor(-1.0)), normal.cdf(torch.tensor(1.0))
    share = ((normal.cdf(draws) - low) / (high - low)).sort(0).values
    uniform = torch.linspace(0, 1, len(draws), dtype=torch.float64).unsqueeze(-1)
    assert (share - uniform).abs().max() < 1.63 / math.sqrt(len(draws)) * 1.5  # Kolmogorov and Smirnov, 1% and more
    assert_close(draws.mean(0), policy.mean.double(), rtol=0, atol=0.02)
    assert_close(draws.std(0), policy.stddev.double(), rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_of_a_draw_gives_it_back(dtype: torch.dtype) -> None:
    loc, raw, noise = 2 * torch.randn(3, 500, 4, dtype=dtype)
    policy = TruncatedNormal(loc, raw)
    draw = policy.sample(noise)
    assert_close(policy.sample(policy.noise_of(draw)), draw, rtol=0, atol=1e-5)
    extreme = policy.sample(torch.full_like(loc, 40.0))
    assert_close(extreme, torch.full_like(loc, 1 - 1e-6), rtol=0, atol=1e-5)
    assert_close(policy.sample(torch.full_like(loc, -40.0)), -extreme, rtol=0, atol=1e-5)


def test_a_draw_at_the_end_keeps_its_gradient() -> None:
    loc, raw = torch.tensor([3.0], requires_grad=True), torch.tensor([0.0])
    policy = TruncatedNormal(loc, raw)
    draw = policy.rsample(torch.tensor([30.0]))
    draw.sum().backward()
    assert draw.item() == pytest.approx(1 - 1e-6, abs=1e-7) and draw.item() < 1
    assert loc.grad.item() == pytest.approx(1 - math.tanh(3.0) ** 2, rel=1e-5)


def tanh_normal(table: Table, samples: Tensor | None = None) -> TanhNormal:
    """V2's option of that name takes no detour: raw deviations of 0 give softplus(init_std) there."""
    init_std, min_std = math.log1p(math.exp(table["init_std"].item())), table["min_std"].item()
    return TanhNormal(table["out"], table["std_raw"], init_std, min_std, samples=samples)


def test_the_tanh_normal_is_official(v2: Table) -> None:
    table = part(v2, "tanh_normal/")
    policy = tanh_normal(table)
    assert_close(policy.loc, table["mean"])
    assert_close(policy.scale, table["std"])
    sample = policy.sample(table["sample_eps"])
    assert_close(sample, table["sample"], rtol=1e-5, atol=1e-6)
    assert_close(policy.log_prob(sample), table["logprob_of_copied_value"], rtol=1e-3, atol=1e-3)
    assert_close(tanh_normal(table, table["entropy_eps"]).entropy(), table["entropy"], rtol=0, atol=3e-2)
    assert_close(tanh_normal(table, table["mean_eps"]).mean, table["sample_mean"], rtol=1e-5, atol=1e-5)
    policy = tanh_normal(table, table["mode_eps"])
    assert_close(policy.samples, table["mode_samples"], rtol=1e-5, atol=1e-6)
    check_modes(policy, table)
    best = table["mode_samples_logprob"].argmax(0)
    assert_close(policy.mode, table["mode_samples"][best, torch.arange(4)], rtol=1e-5, atol=1e-6)


def test_the_tanh_normal_of_v1_is_official(v1: Table) -> None:
    """From features to actions: an ELU layer, then raw means and raw deviations."""
    hidden = torch.nn.functional.elu(v1["feat"] @ v1["h0/kernel"] + v1["h0/bias"])
    raw = (hidden @ v1["hout/kernel"] + v1["hout/bias"]).chunk(2, -1)
    policy = TanhNormal(*raw)
    assert_close(policy.loc, v1["mean"], rtol=1e-5, atol=1e-5)
    assert_close(policy.scale, v1["std"], rtol=1e-5, atol=1e-5)
    sample = policy.sample(v1["sample_eps"])
    assert_close(sample, v1["sample"], rtol=1e-5, atol=1e-6)
    check_modes(TanhNormal(*raw, samples=v1["mode_eps"]), v1)
    # The recording says itself that entropies agree to 1e-2 or so: close to 1, float32 has few digits of atanh.
    assert_close(TanhNormal(*raw, samples=v1["entropy_eps"]).entropy(), v1["entropy"], rtol=1e-2, atol=0)


def check_modes(policy: TanhNormal, table: Table) -> None:
    """The likeliest of the recorded samples, each row its own; officially the index of the first row serves all."""
    likelihoods = table["mode_samples_logprob"]  # [100, 4]
    assert_close(policy.log_prob(table["mode_samples"]), likelihoods, rtol=1e-5, atol=1e-4)
    assert_close(policy.log_prob(policy.mode), policy.log_prob(policy.samples).amax(0))
    assert_close(policy.mode[0], table["mode"][0], rtol=1e-5, atol=1e-6)
    assert_close(table["mode"], table["mode_samples"][likelihoods[:, 0].argmax()], rtol=0, atol=0)
    assert not policy.mode.allclose(table["mode"])


def test_modes_of_a_tanh_normal_come_without_random_numbers() -> None:
    policy = TanhNormal(torch.randn(2, 3, 4), torch.randn(2, 3, 4), init_std=0.3)
    before = torch.get_rng_state()
    assert policy.mode.equal(policy.mode) and policy.entropy().equal(policy.entropy())
    assert torch.get_rng_state().equal(before)
    draws = policy.sample((1000,))
    assert (policy.log_prob(policy.mode) >= policy.log_prob(draws).quantile(0.9, 0)).all()


def test_the_density_of_a_tanh_normal_is_torchs() -> None:
    policy = TanhNormal(torch.randn(5, 3).double(), torch.randn(5, 3).double(), init_std=0.5)
    theirs = td.TransformedDistribution(td.Normal(policy.loc, policy.scale), td.TanhTransform())
    draws = policy.sample((7,))
    assert_close(policy.log_prob(draws), theirs.log_prob(draws).sum(-1))
    assert policy.log_prob(torch.ones(5, 3).double()).isfinite().all()


@pytest.mark.parametrize(
    "make", [TruncatedNormal, partial(TanhNormal, init_std=0.5), partial(BoundedNormal, max_std=2.0)]
)
def test_an_actor_acts_by_any_distribution(make: object) -> None:
    """Floats by it, classes as ever; noise is shared out as before."""
    space = ActionSpace(Composite(arm=Bounded(-1, 1, (2,)), gear=OneHot(3)))
    actor = Actor(6, space, units=8, continuous=make)
    parameters = torch.randn(5, 7)
    policy, noise = actor.distribution(parameters), space.noise(5)
    alone = make(*parameters[:, :4].chunk(2, -1))
    draw = policy.sample(noise)
    assert_close(draw[:, :2], alone.sample(noise[:, :2]))
    assert_close(policy.mode[:, :2], alone.mode)
    gear = policy.parts[1]
    assert_close(policy.entropy(), alone.entropy() + gear.entropy())
    assert_close(policy.log_prob(draw), alone.log_prob(draw[:, :2]) + gear.log_prob(draw[:, 2:].unsqueeze(-2)))


@pytest.mark.parametrize("min_std", [0.1, 0.4])
def test_entropy_limits_of_a_truncated_normal(min_std: float) -> None:
    """Reached at the ends, and passed nowhere."""
    make = partial(TruncatedNormal, min_std=min_std)
    space = ActionSpace(Bounded(-1, 1, (3,)))
    low, high = ActionDistribution(torch.zeros(6), space, continuous=make).entropy_range
    loc, raw = torch.meshgrid(torch.linspace(-9, 9, 41), torch.linspace(-60, 60, 41), indexing="ij")
    entropies = 3 * make(loc.unsqueeze(-1).double(), raw.unsqueeze(-1).double()).entropy()
    assert entropies.min().item() == pytest.approx(low, abs=1e-4) and entropies.min() >= low
    assert entropies.max().item() == pytest.approx(high, abs=1e-4) and entropies.max() <= high + 1e-12
    assert high < 3 * math.log(2)
    assert ActionDistribution(torch.zeros(6), space, continuous=TanhNormal).entropy_range is None
