"""Returns agree with the official numbers and with slow loops; their scale stays inside its bounds."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dreamer_torchrl.objectives.returns import ReturnNormalizer, RewardNormalizer, lambda_return, percentiles
from dreamer_torchrl.objectives.value import replay_return
from tests.objectives.examples import golden, part

number = st.floats(-10, 10)
share = st.floats(0, 1)
many = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)
percents = st.floats(0, 100)


def mixed_n_step_returns(steps: list[tuple[float, float, float, float]]) -> list[float]:
    """The definition: a mix of all n-step returns, of which the longest gets what the others leave."""
    returns = []
    for start in range(len(steps)):
        collected, alive, trust, mixture = 0.0, 1.0, 1.0, 0.0
        for n, (reward, value, live, mix) in enumerate(steps[start:], start):
            collected += alive * reward
            alive *= live
            share = 1.0 if n == len(steps) - 1 else 1 - mix
            mixture += trust * share * (collected + alive * value)
            trust *= mix
        returns.append(mixture)
    return returns


def test_official_lambda_return() -> None:
    """A recorded sequence, with terminal and merely last steps in it."""
    t = part(golden("tables_losses.npz"), "lambda_return/")
    returns = replay_return(t["rew"], t["boot"], t["term"].float(), t["last"].float(), 1 - 1 / 333, 0.95)
    assert_close(returns, t["ret_disc0.997_lam0.95"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", range(4))
def test_official_lambda_return_of_v1_and_v2(case: int) -> None:
    """One function there, time first: R_t = r_t + d_t ((1 - lambda) v_{t+1} + lambda R_{t+1}), R_L = bootstrap.

    Reward and discount have the index of the return, values that of the next step: with v_t instead, all is wrong.
    """
    t = part(golden("tables_v2.npz", "golden_family"), f"lambda_return/{case}/")
    after = torch.cat([t["value"][1:], t["bootstrap"][None]])  # [L, N]
    for value in (after, t["value"]):
        returns = lambda_return(t["reward"].mT, value.mT, t["pcont"].mT, t["lambda"])
        assert returns.mT.allclose(t["out"], rtol=1e-5, atol=1e-5) == (value is after)


@pytest.mark.parametrize("name", ["momentum0.99_scale1.0", "momentum0.0_scale2.0", "momentum1.0_scale1.0"])
def test_official_reward_normalizer(name: str) -> None:
    """The magnitude is updated before it divides; the gradient does not see it."""
    momentum, scale = map(float, re.findall(r"[\d.]+", name))
    table, normalizer = golden("tables_v2.npz", "golden_family"), RewardNormalizer(momentum, scale)
    for call in range(3):
        t = part(table, f"stream_norm/{name}/{call}/")
        before, reward = normalizer.magnitude.item(), t["in"].requires_grad_()
        found = normalizer(reward)
        assert_close(found, t["out"], rtol=1e-6, atol=1e-6)
        assert_close(normalizer.magnitude.float(), t["mag_after"], rtol=1e-6, atol=0)
        if momentum < 1:
            assert not (reward / before * scale).allclose(t["out"], rtol=1e-4)
        (grad,) = torch.autograd.grad(found.sum(), reward)
        assert_close(grad, torch.full_like(grad, scale / t["mag_after"].item()))


@given(st.lists(st.tuples(number, number, share, share), min_size=1, max_size=8))
def test_lambda_return_is_the_mix_of_n_step_returns(steps: list[tuple[float, float, float, float]]) -> None:
    reward, value, live, mix = torch.tensor(steps, dtype=torch.float64).unbind(-1)
    expected = torch.tensor(mixed_n_step_returns(steps), dtype=torch.float64)
    assert_close(lambda_return(reward, value, live, mix), expected)


def test_a_break_in_a_recording_is_bridged_by_its_value_and_an_end_is_not() -> None:
    """A truncated episode goes on in its bootstrap, a terminated one is worth nothing from there."""
    reward, bootstrap = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.0, 10.0, 20.0, 30.0]])
    never, here = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    truncated = replay_return(reward, bootstrap, never, here, gamma=0.5, return_lambda=1.0)
    assert truncated.tolist() == [[1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * 20, 3 + 0.5 * 30]]
    terminated = replay_return(reward, bootstrap, here, here, gamma=0.5, return_lambda=1.0)
    assert terminated.tolist() == [[1 + 0.5 * 2, 2, 3 + 0.5 * 30]]


@given(many, percents)
def test_percentile_is_that_of_numpy_and_torch(values: list[float], percent: float) -> None:
    (found,) = percentiles(torch.tensor(values, dtype=torch.float64), (percent,))
    close = {"rtol": 1e-9, "atol": 1e-6}
    assert_close(found, torch.tensor(np.percentile(values, percent)), **close)
    assert_close(found, torch.quantile(torch.tensor(values, dtype=torch.float64), percent / 100), **close)


def test_official_normalizer() -> None:
    """Four updates in a row."""
    table, normalizer = golden("tables_retnorm.npz"), ReturnNormalizer()
    for i in range(4):
        normalizer.update(table[f"retnorm/x{i}"])
        assert_close(torch.stack([normalizer.low, normalizer.high]), table[f"retnorm/lo_hi{i}"], rtol=1e-5, atol=1e-6)
        assert_close(
            torch.stack([normalizer.low, normalizer.scale]), table[f"retnorm/offset_scale{i}"], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_normalizer_is_float32_and_outside_of_every_graph(dtype: torch.dtype) -> None:
    normalizer = ReturnNormalizer()
    normalizer.update(torch.randn(3, 4, dtype=dtype, requires_grad=True))
    assert normalizer.low.dtype == normalizer.high.dtype == torch.float32
    assert not normalizer.scale.requires_grad
