"""Norm and silu by the kernels: the numbers and gradients of the plain modules; and where kernels cannot go."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing import assert_close

from dreamer_torchrl.kernels import attach, rowwise
from dreamer_torchrl.kernels.calls import fits
from dreamer_torchrl.modules.distributions import two_hot_bins
from dreamer_torchrl.modules.heads import TwoHotHead
from dreamer_torchrl.modules.layers import MLP, rms_norm
from dreamer_torchrl.modules.layers import NormSilu as Module
from tests.kernels.compilers import every_dtype, needs_compiler
from tests.kernels.rowwise_examples import close, gradients, layouts

pytestmark = needs_compiler
SHAPES = [(5, width) for width in (1, 3, 8, 64, 255)]
SHAPES += [(rowwise.TILE, 9), (2 * rowwise.TILE + 1, 17), (0, 4)]


def plain_norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    return F.silu(rms_norm(x, scale))


@every_dtype
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_norm_and_silu(rows: int, width: int, dtype: torch.dtype) -> None:
    x, scale = 3 * torch.randn(rows, width, dtype=dtype), torch.randn(width, dtype=dtype)
    exact = gradients(plain_norm_silu, x.double(), scale.double())
    for here, wanted in zip(gradients(rowwise.NormSiluFunction.apply, x, scale), exact, strict=True):
        assert here.dtype is dtype
        close(here, wanted, least=1.0)


@every_dtype
def test_inputs_and_gradients_that_do_not_lie_in_a_row(dtype: torch.dtype) -> None:
    """Their copies live until the kernel has read them."""
    x, d_y, scale = torch.randn(20, 15, 64).to(dtype), torch.randn(20, 15, 64).to(dtype), torch.ones(64, dtype=dtype)
    d_y[..., 1:] = d_y[..., :1]
    results = []
    for lies in layouts(x):
        for flows in (*layouts(d_y), d_y[..., :1].expand_as(x)):
            leaf, weight = lies.detach().requires_grad_(), scale.clone().requires_grad_()
            y = rowwise.NormSiluFunction.apply(leaf, weight)
            results.append([y.detach(), *torch.autograd.grad(y, (leaf, weight), flows)])
    close(results[0][0], plain_norm_silu(x, scale))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)


@every_dtype
def test_norm_and_silu_of_numbers_of_any_size(dtype: torch.dtype) -> None:
    for size in (0.0, 1e-15, 1e-5, 1.0, 1e5, 1e15):
        x, scale = size * torch.randn(7, 12, dtype=dtype), 30 * torch.randn(12, dtype=dtype)
        exact = gradients(plain_norm_silu, x.double(), scale.double())
        for here, wanted in zip(gradients(rowwise.NormSiluFunction.apply, x, scale), exact, strict=True):
            close(here, wanted)


@every_dtype
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("width", [3, 64])
def test_what_is_no_number_spoils_its_row_alone(bad: float, width: int, dtype: torch.dtype) -> None:
    x, scale = torch.randn(5, width, dtype=dtype), torch.ones(width, dtype=dtype)
    x[2, width - 1] = bad
    y, d_x, d_scale = gradients(rowwise.NormSiluFunction.apply, x, scale)
    wanted = gradients(plain_norm_silu, x, scale)
    for here, other in ((y, wanted[0]), (d_x, wanted[1])):
        assert torch.equal(here.isnan(), other.isnan())
        assert here[2].isnan().any() and here[[0, 1, 3, 4]].isfinite().all()
    assert d_scale.isnan().any()


@every_dtype
def test_threads_do_not_change_a_bit(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    x, scale = torch.randn(3 * rowwise.TILE + 40, 65, dtype=dtype), torch.randn(65, dtype=dtype)
    bins, targets = two_hot_bins(65).to(dtype), 10 * torch.randn(len(x), 2, dtype=dtype)
    results = []
    for count in (1, 2, 3, 100):
        threads(count)
        normed = gradients(rowwise.NormSiluFunction.apply, x, scale)
        loss = gradients(lambda logits: rowwise.TwoHotLoss.apply(logits, bins, targets, (1.0, 0.5)), x)
        results.append([*normed, rowwise.TwoHotMean.apply(x, bins), *loss])
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)


def test_a_module_with_kernels_is_the_module() -> None:
    module = Module(9)
    torch.nn.init.normal_(module.norm.weight)
    x = torch.randn(2, 3, 9)
    expected = module(x)
    attach(module, True)
    y = module(x)
    close(y, expected)
    assert type(y.grad_fn).__name__ == "NormSiluFunctionBackward"
    assert type(module(x.double()).grad_fn).__name__ != "NormSiluFunctionBackward"  # the weight is of another precision
    assert module(x.bfloat16()).dtype is torch.bfloat16
    attach(module, False)
    assert torch.equal(module(x), expected)


@pytest.mark.slow
def test_in_a_compiled_module() -> None:
    mlp = MLP(5, 8, layers=2)
    expected = mlp(torch.ones(3, 5))
    attach(mlp, True)
    torch._dynamo.reset()
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    assert_close(compiled(torch.ones(3, 5)), expected)


def test_in_an_exported_module() -> None:
    head = TwoHotHead(5, 8, layers=1)
    torch.nn.init.normal_(head.logits.weight)
    expected = head(torch.ones(3, 5))
    attach(head, True)
    exported = torch.export.export(head, (torch.ones(3, 5),))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called and all(name.startswith("aten.") for name in called)
    for one, other in zip(exported.module()(torch.ones(3, 5)), expected, strict=True):
        assert_close(one, other)


def test_under_transformations_of_functions() -> None:
    mlp = MLP(5, 8, layers=2)
    x = torch.randn(4, 3, 5)
    expected = mlp(x)
    attach(mlp, True)
    assert_close(torch.vmap(mlp)(x), expected)
    assert torch.func.grad(lambda x: mlp(x).sum())(x).shape == x.shape


def test_tensors_without_numbers() -> None:
    """A kernel would read at address 0."""
    with FakeTensorMode():
        fake = Module(8)
        attach(fake, True)
        assert fake(torch.ones(3, 8)).shape == (3, 8)
        loss = rowwise.NativeTwoHotCrossEntropy()(torch.ones(3, 9), torch.arange(9.0), torch.ones(3, 1))
        assert loss.shape == (3,)
        assert not fits(torch.ones(3))
    assert fits(torch.ones(2)) and fits(torch.nn.Parameter(torch.ones(2).double()))
    assert not any(map(fits, (torch.ones(2).bfloat16(), torch.ones(2).long(), torch.ones(2, device="meta"))))
