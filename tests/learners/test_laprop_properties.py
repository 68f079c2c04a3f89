"""What a step of LaProp does to any parameters and gradients, on every path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from dreamer_torchrl.learners.laprop import LaProp, adaptive_clip
from tests.kernels.compilers import needs_compiler
from tests.learners.laprop_examples import MODES, Operations, every_mode, groups, parameter, random_parameters, train


@every_mode
def test_first_update_of_a_warmup_moves_nothing(mode: dict[str, bool]) -> None:
    for warmup, moved in ((1000, False), (1, False), (0, True)):
        params = [parameter(1.0, -2.0), parameter(0.0)]
        before = [param.detach().clone() for param in params]
        optimizer = LaProp(params, warmup=warmup, **mode)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        for param, value in zip(params, before, strict=True):
            assert torch.equal(param, value) is not moved
            assert optimizer.state[param]["mu"].all()


@every_mode
def test_parameter_without_gradient_is_left_alone(mode: dict[str, bool]) -> None:
    params = [parameter(1.0), parameter(1.0)]
    optimizer = LaProp(params, lr=0.1, warmup=0, **mode)
    optimizer.step()
    params[0].grad = torch.ones(1)
    optimizer.step()
    assert params[0].item() == pytest.approx(0.9)
    assert params[1].item() == 1.0
    assert [int(optimizer.state[param]["step"]) for param in params] == [1, 0]
    params[1].grad = torch.ones(1)  # its own first update, corrected as such
    optimizer.step()
    assert params[1].item() == pytest.approx(0.9)


@every_mode
def test_gradients_of_any_size(mode: dict[str, bool]) -> None:
    """Zero stays zero, and what is so small that its square is lost in float32 does not blow up."""
    sizes = [0.0, 1e-45, 1e-30, 1e-20, 1e-15, 1.0, 1e15]
    params = [parameter(0.0) for _ in sizes]
    optimizer = LaProp(params, lr=1.0, warmup=0, clip=math.inf, **mode)
    for param, size in zip(params, sizes, strict=True):
        param.grad = torch.tensor([size])
    optimizer.step()
    steps = [-param.item() for param in params]
    assert steps[0] == 0
    assert all(0 <= step <= 1.1 for step in steps)
    assert steps[4:] == pytest.approx([1, 1, 1], rel=1e-4)


@every_mode
def test_gradients_are_only_read(mode: dict[str, bool]) -> None:
    params = [parameter(1.0), parameter(2.0)]
    for param in params:
        param.grad = torch.full_like(param, 100.0)
    LaProp(params, **mode).step()
    assert [param.grad.item() for param in params] == [100.0, 100.0]


def states_of(optimizer: LaProp) -> list[Tensor]:
    """Copies of all that an update may change."""
    return [x.detach().clone() for param, state in optimizer.state.items() for x in (param, *state.values())]


@every_mode
def test_an_update_that_is_called_off(mode: dict[str, bool]) -> None:
    """Nothing changes, whatever the gradients, and the next one is as if it had never been."""
    optimizers = [LaProp([parameter(1.0, -2.0), parameter(0.5)], lr=0.1, warmup=2, **mode) for _ in range(2)]
    for optimizer in optimizers:
        for grads in ((1.0, 2.0), (-3.0, 0.5)):
            for param, grad in zip(optimizer.state, grads, strict=True):
                param.grad = torch.full_like(param, grad)
            optimizer.step(where=torch.tensor(True))
    called_off, other = optimizers
    before = states_of(called_off)
    for bad in (math.nan, math.inf, 5.0):
        for param in called_off.state:
            param.grad = torch.full_like(param, bad)
        called_off.step(where=torch.tensor(False))
        assert_close(states_of(called_off), before, rtol=0, atol=0)
    for optimizer in (called_off, other):
        for param in optimizer.state:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert_close(states_of(called_off), states_of(other), rtol=0, atol=0)


@every_mode
@pytest.mark.parametrize("where", ["gradient", "parameter"])
def test_what_is_no_number_is_not_hidden(mode: dict[str, bool], where: str) -> None:
    """It spoils all of its own tensor and of its state, and no other."""
    params = [nn.Parameter(torch.ones(19)), nn.Parameter(torch.ones(2))]
    optimizer = LaProp(params, warmup=0, **mode)
    for param in params:
        param.grad = torch.ones_like(param)
    (params[0].grad if where == "gradient" else params[0].data)[17] = math.nan
    optimizer.step()
    assert params[0].isnan().all() and params[1].isfinite().all()
    for name in ("mu", "nu"):
        assert optimizer.state[params[0]][name].isnan().all()
        assert optimizer.state[params[1]][name].isfinite().all()


def test_tensors_that_do_not_lie_in_a_row() -> None:
    """The kernel leaves them, and what is in their group, to the others."""
    start, grads = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    results = []
    for turned in ("nothing", "parameter", "gradient"):
        optimizer = LaProp([nn.Parameter(value.clone()) for value in start], lr=0.1, warmup=0, native=True)
        if turned == "parameter":
            first = nn.Parameter(start[0].t().contiguous().t())
            assert not first.is_contiguous()
            optimizer = LaProp([first, nn.Parameter(start[1].clone())], lr=0.1, warmup=0, native=True)
        for _ in range(3):
            for param, grad in zip(optimizer.state, grads, strict=True):
                param.grad = grad.t().contiguous().t() if turned == "gradient" else grad.clone()
            optimizer.step()
        results.append([param.detach() for param in optimizer.state])
    for result in results[1:]:
        assert_close(result, results[0])


@needs_compiler
def test_the_kernel_does_all_of_a_step() -> None:
    params = random_parameters()
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = LaProp(groups(params), native=True)
    with Operations() as operations:
        optimizer.step()
    assert not operations.seen


@needs_compiler
def test_threads_change_no_bit_of_a_step(threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 2, 3):
        threads(count)
        torch.manual_seed(0)
        optimizer = LaProp(groups(random_parameters()), native=True)
        train(optimizer, range(5))
        results.append(states_of(optimizer))
    for result in results[1:]:
        assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 7, 8, 15, 16, 17, 4095, 4096, 4097, 8200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_of_any_size(size: int, dtype: torch.dtype) -> None:
    """Around the vectors and the parts of a kernel's sums: no number is forgotten and none counts twice."""
    start = torch.randn(size, dtype=dtype)
    results = []
    for mode in ("one_by_one", "native"):
        param = nn.Parameter(start.clone())
        optimizer = LaProp([param], lr=0.1, warmup=0, clip=0.01, **MODES[mode])
        for seed in range(3):
            param.grad = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
            optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-13, "atol": 1e-14}
    assert_close(results[1], results[0], **tolerance)


scales = st.floats(-6, 6).map(lambda exponent: 10**exponent)


@given(st.integers(0, 2**31), st.integers(1, 40), scales, scales, st.floats(0.01, 9))
def test_clipping_only_ever_shortens(seed: int, size: int, param_scale: float, grad_scale: float, clip: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    param, grad = (s * torch.randn(size, generator=generator) for s in (param_scale, grad_scale))
    limit = clip * max(1e-3, param.norm().item())
    clipped = adaptive_clip(param, grad, clip)
    assert clipped.norm() <= grad.norm()
    assert clipped.norm() <= limit * (1 + 1e-5)
    if grad.norm() < limit * (1 - 1e-5):
        assert torch.equal(clipped, grad)
    else:
        assert_close(clipped / clipped.norm(), grad / grad.norm())


def test_closure_is_called_with_gradients() -> None:
    param = parameter(1.0)
    optimizer = LaProp([param], lr=0.1, warmup=0)

    def closure() -> Tensor:
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert param.item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lr": -1.0}, r"lr=-1.0\. Choose"),
        ({"lr": math.nan}, r"lr=nan\. Choose"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]=1.0\. Choose"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\]=-0.1\. Choose"),
        ({"eps": 0.0}, r"eps=0.0\. .*try 1e-20"),
        ({"eps": 1e-50}, r"eps=1e-50\. .*try 1e-20"),
        ({"clip": 0.0}, r"clip=0.0\. .*math.inf"),
        ({"clip_floor": 0.0}, r"clip_floor=0.0\. Choose"),
        ({"warmup": -1}, r"warmup=-1\. .*0 for none"),
    ],
)
def test_impossible_values_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LaProp([parameter(1.0)], **options)
    with pytest.raises(ValueError, match=complaint):
        LaProp([{"params": [parameter(1.0)], **options}])


def test_low_precision_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.bfloat16.*Keep parameters in float32"):
        LaProp([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])


@pytest.mark.parametrize("name", ["one_by_one", "foreach", "native"])
def test_norms_of_large_tensors_keep_their_digits(name: str) -> None:
    """Torch's own norm of four million float32 on a CPU is off by more than 1e-5, that of twenty million by 1e-3."""
    large, small = torch.randn(2, 4, 1000, 1000).unbind(), torch.randn(2, 3).unbind()
    for weight, grad in (large, small):
        exact = adaptive_clip(weight.double(), 7 * grad.double())
        torch.testing.assert_close(adaptive_clip(weight, 7 * grad).double(), exact, rtol=2e-6, atol=0)
    params = [torch.nn.Parameter(weight.clone()) for weight, _ in (large, small)]
    for param, (_, grad) in zip(params, (large, small), strict=True):
        param.grad = 7 * grad
    optimizer = LaProp(params, **MODES[name])
    optimizer.step()
    exact = 1e-3 * adaptive_clip(large[0].double(), 7 * large[1].double()).square()
    torch.testing.assert_close(optimizer.state[params[0]]["nu"].double(), exact, rtol=5e-6, atol=0)
