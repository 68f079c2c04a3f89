"""One step is the paper's, and a reset forgets everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from dreamer_torchrl.modules import BlockGRU, Linear, PriorStep, RMSNorm
from dreamer_torchrl.modules.rssm import bounded
from tests.modules.rssm_examples import BLOCKS, D, K, S, few, model, step_inputs


def hidden_layers(module: nn.Module, x: Tensor) -> Tensor:
    """Linear, norm and silu of each layer, by hand."""
    linears = [layer for layer in module.modules() if isinstance(layer, Linear)]
    norms = [layer for layer in module.modules() if isinstance(layer, RMSNorm)]
    for linear, norm in zip(linears, norms, strict=True):
        x = x @ linear.weight.t() + linear.bias
        x = x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * norm.weight
        x = x * x.sigmoid()
    return x


def core_by_hand(core: BlockGRU, belief: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """The recurrence as golden/README.md tells it, block by block."""
    action = action / torch.maximum(torch.ones_like(action), action.abs())
    shared = [hidden_layers(core.belief_in, belief), hidden_layers(core.state_in, state)]
    shared = torch.cat([*shared, hidden_layers(core.action_in, action)], -1)
    size = D // BLOCKS
    own = [belief[:, block * size : (block + 1) * size] for block in range(BLOCKS)]
    mixed = [torch.cat([own[block], shared], -1) @ core.mix.weight[block] for block in range(BLOCKS)]
    mixed = torch.cat(mixed, -1) + core.mix.bias
    mixed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-4).sqrt() * core.mix_norm.norm.weight  # over all D
    mixed = mixed * mixed.sigmoid()
    gates = [mixed[:, block * size : (block + 1) * size] @ core.gates.weight[block] for block in range(BLOCKS)]
    gates = torch.cat(gates, -1) + core.gates.bias
    blocks = []
    for block in range(BLOCKS):
        reset, candidate, update = gates[:, block * 3 * size : (block + 1) * 3 * size].chunk(3, -1)
        update = torch.sigmoid(update - 1)
        blocks.append(update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * own[block])
    return torch.cat(blocks, -1)


def test_the_recurrence_is_the_one_written_in_the_recordings() -> None:
    core = model().core
    _, action, belief, state, _ = step_inputs(7)
    action = action * 3  # some beyond 1
    assert_close(core(belief, state.flatten(1), action), core_by_hand(core, belief, state.flatten(1), action))


@few
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_actions_are_bounded_by_one_and_the_gradient_ignores_the_divisor(numbers: list[float]) -> None:
    action = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    value = bounded(action)
    assert_close(value, action.clamp(-1, 1))
    value.sum().backward()
    assert_close(action.grad, 1 / action.detach().abs().clamp_min(1))


def test_posterior_sees_belief_and_observation() -> None:
    rssm = model()
    encoded, action, belief, state, noise = step_inputs(7)
    new, _, logits = rssm(encoded, action, torch.zeros(7, 1).bool(), belief, state, noise)
    assert_close(new, core_by_hand(rssm.core, belief, state.flatten(1), action))
    hidden = hidden_layers(rssm.posterior, torch.cat([new, encoded], -1))
    expected = hidden @ rssm.posterior_logits.weight.t() + rssm.posterior_logits.bias
    assert_close(logits, expected.reshape(7, S, K))


def test_prior_sees_the_belief_alone() -> None:
    rssm = model()
    _, action, belief, state, noise = step_inputs(7)
    new, _, logits = rssm.imagine(belief, state, action, noise)
    assert_close(new, core_by_hand(rssm.core, belief, state.flatten(1), action))
    expected = hidden_layers(rssm.prior, new) @ rssm.prior_logits.weight.t() + rssm.prior_logits.bias
    assert_close(logits, expected.reshape(7, S, K))
    assert_close(rssm.prior_from(new.expand(2, 7, D)), logits.expand(2, 7, S, K))


@pytest.mark.parametrize(("unimix", "chosen"), [(0.01, 2), (0.0, 0)])
def test_one_percent_of_uniform_is_mixed_into_the_samples(unimix: float, chosen: int) -> None:
    logits = torch.tensor([[[100.0, -100.0, -100.0]]], dtype=torch.float64)
    sample = model(unimix=unimix).latent.sample(logits, torch.tensor([[0.998]], dtype=torch.float64))
    assert sample.argmax() == chosen


@few
@given(st.integers(0, 2**31))
def test_a_reset_is_a_fresh_start_for_its_row_alone(seed: int) -> None:
    rssm = model()
    torch.manual_seed(seed)
    encoded, action, belief, state, noise = step_inputs(6)
    is_init = torch.rand(6, 1) < 0.5
    mixed = rssm(encoded, action, is_init, belief, state, noise)
    start = [x.double() for x in rssm.initial(6)]
    fresh = rssm(encoded, torch.zeros_like(action), torch.zeros_like(is_init), *start, noise)
    going = rssm(encoded, action, torch.zeros_like(is_init), belief, state, noise)
    for result, reset, on in zip(mixed, fresh, going, strict=True):
        expected = torch.where(is_init.reshape(6, *[1] * (reset.ndim - 1)), reset, on)
        assert_close(result, expected)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_a_prior_step_takes_any_batch(batch: tuple[int, ...]) -> None:
    rssm = model()
    _, action, belief, state, _ = step_inputs(*batch)
    rows = [x.reshape(-1, *x.shape[len(batch) :]) for x in (belief, state, action)]
    torch.manual_seed(1)
    expected = rssm.imagine(*rows)
    torch.manual_seed(1)
    logits, new_state, new_belief = PriorStep(rssm)(state, belief, action)
    for output, wanted in zip((new_belief, new_state, logits), expected, strict=True):
        assert_close(output, wanted.reshape(*batch, *wanted.shape[1:]))


def test_faces(check_faces: Callable[..., TensorDict]) -> None:
    rssm = model()
    encoded, action, belief, state, _ = step_inputs(3)
    check_faces(rssm, encoded, action, torch.zeros(3, 1).bool(), belief, state)
    check_faces(PriorStep(rssm), state, belief, action)
