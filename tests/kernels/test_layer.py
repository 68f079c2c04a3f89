"""Linear and hidden layers by the kernels are those of the modules: forward, every gradient, whatever the shape."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from dreamer_torchrl.kernels import attach
from dreamer_torchrl.modules.layers import MLP, HiddenLayer, Linear, NormSilu
from tests.kernels.compilers import every_dtype, needs_compiler

pytestmark = needs_compiler
LAYERS = {"linear": Linear, "hidden": HiddenLayer}
SHAPES = [(1, 3, 1), (17, 37, 64), (49, 24, 255)]


def made(kind: str, inputs: int, outputs: int, dtype: torch.dtype) -> nn.Module:
    """A layer all of whose parameters are random."""
    module = LAYERS[kind](inputs, outputs).to(dtype)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def with_gradients(module: nn.Module, native: bool, x: Tensor, weight: Tensor) -> list[Tensor]:
    """What a layer gives, and the gradients of x and of its parameters."""
    attach(module, native)
    y = module(x)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])]


@every_dtype
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_numbers_and_gradients(kind: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    module = made(kind, inputs, outputs, dtype)
    x = torch.randn(rows, 2, inputs, dtype=dtype, requires_grad=True)
    weight = torch.randn(rows, 2, outputs, dtype=dtype)
    precise = {"rtol": 1e-10, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    plain, found = (with_gradients(module, native, x, weight) for native in (False, True))
    for here, there in zip(found, plain, strict=True):
        assert_close(here, there, **precise)


@pytest.mark.parametrize("kind", LAYERS)
def test_views_and_gradients_that_are_not_contiguous(kind: str) -> None:
    module = made(kind, 6, 7, torch.float64)
    x = torch.randn(6, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 20, dtype=torch.float64)
    plain, found = (with_gradients(module, native, x.t(), weight.t())[1:] for native in (False, True))
    for here, there in zip(found, plain, strict=True):
        assert_close(here, there, rtol=1e-10, atol=1e-10)


def test_no_gradient_is_computed_for_what_needs_none() -> None:
    """The critic learns on features that teach nobody: the largest product of all is left out."""
    module = made("hidden", 6, 7, torch.float32)
    attach(module, True)
    x = torch.randn(20, 6)
    with torch.profiler.profile() as profile:
        module(x).sum().backward()
    products = sum(event.count for event in profile.key_averages() if event.key == "aten::mm")
    assert products == 1
    assert module.linear.weight.grad is not None


@every_dtype
@pytest.mark.parametrize("rows", [5, 17])
def test_layers_at_once_are_those_one_by_one(rows: int, dtype: torch.dtype) -> None:
    """To the last bit, where no gradient is asked for."""
    module = MLP(37, 21, layers=3).to(dtype)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    attach(module, True)
    x = torch.randn(rows, 2, 37, dtype=dtype)
    one_by_one = module(x)
    assert one_by_one.requires_grad
    with torch.no_grad():
        at_once = module(x)
        assert torch.equal(at_once, one_by_one)
        assert torch.equal(module(x.transpose(0, 1)), one_by_one.transpose(0, 1))
        attach(module, False)
        assert_close(module(x), at_once, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_layers_at_once_follow_their_weights() -> None:
    """New numbers in the same tensors, other tensors, lent ones, and those of a copy."""
    module, other = (MLP(6, 7, layers=2) for _ in range(2))
    attach(module, True)
    attach(other, True)
    x = torch.randn(4, 6)
    first = module(x)
    copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    for parameter in module.parameters():
        parameter.mul_(-2)
    second = module(x)
    assert not torch.equal(first, second)
    assert all(torch.equal(one(x), first) for one in copies)
    lent = torch.func.functional_call(module, dict(other.named_parameters()), (x,))
    assert torch.equal(lent, other(x)) and torch.equal(module(x), second)
    with TensorDict.from_module(other).to_module(module):
        assert torch.equal(module(x), other(x))
    assert torch.equal(module(x), second)
    module.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(module(x), other(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("make", [Linear, HiddenLayer, lambda i, o: MLP(i, o, layers=2), lambda i, _: NormSilu(i)])
def test_another_width_is_refused_by_torch(make: Callable[[int, int], nn.Module], grad: bool) -> None:
    """The kernels would read what lies behind it in memory."""
    module = make(6, 7)
    attach(module, True)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=r"shape|size"):
        module(torch.randn(4, 5))


@pytest.mark.parametrize("layers", [0, 9])
@torch.no_grad()
def test_no_layers_or_more_than_the_kernel_has_room_for(layers: int) -> None:
    module = MLP(3, 4, layers)
    x = torch.randn(2, 3)
    plain = module(x)
    attach(module, True)
    assert_close(module(x), plain, rtol=1e-3, atol=1e-3)
