"""Norm and silu, and two-hot predictions, by the kernels: the numbers and gradients of the plain modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing import assert_close

from dreamer_torchrl.modules.distributions import TwoHot, two_hot_bins, two_hot_cross_entropy
from dreamer_torchrl.modules.heads import TwoHotHead
from dreamer_torchrl.modules.layers import MLP, rms_norm
from dreamer_torchrl.modules.layers import NormSilu as Module
from dreamer_torchrl.native import rowwise
from dreamer_torchrl.native.calls import fits, use_native
from tests.native.compilers import needs_compiler

pytestmark = needs_compiler
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SHAPES = [(rows, width) for rows in (1, 5) for width in (1, 3, 8, 9, 64, 255)]
SHAPES += [(300, 3), (300, 64), (rowwise.TILE, 9), (2 * rowwise.TILE + 1, 17), (0, 4)]


def close(here: Tensor, exact: Tensor, least: float = 0.0) -> None:
    """To rounding: of the largest number where many were summed up, or of `least` where those cancel."""
    assert here.shape == exact.shape
    exact = exact.to(here.dtype)
    tolerance = 2e-6 if here.dtype is torch.float32 else 1e-13
    assert_close(here, exact, rtol=tolerance, atol=tolerance * max([least, *exact.abs().flatten().tolist()]))


def gradients(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 1) -> tuple[Tensor, ...]:
    """What comes out, and the gradients of a random sum of it."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    outputs = function(*inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return outputs.detach(), *torch.autograd.grad((outputs * weights.to(outputs)).sum(), inputs)


def plain_norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    return F.silu(rms_norm(x, scale))


@pytest.fixture
def threads() -> None:
    """A test may change their number."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Norm and silu


@every_dtype
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_norm_and_silu(rows: int, width: int, dtype: torch.dtype) -> None:
    x, scale = 3 * torch.randn(rows, width, dtype=dtype), torch.randn(width, dtype=dtype)
    exact = gradients(plain_norm_silu, x.double(), scale.double())
    for here, wanted in zip(gradients(rowwise.NormSilu.apply, x, scale), exact, strict=True):
        assert here.dtype is dtype
        close(here, wanted, least=1.0)


def test_gradients_of_norm_and_silu_by_differences() -> None:
    x, scale = torch.randn(2, 3, 5).double().requires_grad_(), torch.randn(5).double().requires_grad_()
    assert torch.autograd.gradcheck(rowwise.NormSilu.apply, (x, scale))


def layouts(x: Tensor) -> list[Tensor]:
    """The same numbers, otherwise in memory."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return [x, x.transpose(0, 1).contiguous().transpose(0, 1), wide[..., ::2]]


@every_dtype
def test_inputs_and_gradients_that_do_not_lie_in_a_row(dtype: torch.dtype) -> None:
    """Their copies live until the kernel has read them."""
    x, d_y, scale = torch.randn(40, 30, 64).to(dtype), torch.randn(40, 30, 64).to(dtype), torch.ones(64, dtype=dtype)
    d_y[..., 1:] = d_y[..., :1]
    results = []
    for lies in layouts(x):
        for flows in (*layouts(d_y), d_y[..., :1].expand_as(x)):
            leaf, weight = lies.detach().requires_grad_(), scale.clone().requires_grad_()
            y = rowwise.NormSilu.apply(leaf, weight)
            results.append([y.detach(), *torch.autograd.grad(y, (leaf, weight), flows)])
    close(results[0][0], plain_norm_silu(x, scale))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)


def test_a_scale_that_does_not_lie_in_a_row() -> None:
    x, scale = torch.randn(5, 8).double(), torch.randn(8, 2).double()[:, 0]
    assert not scale.is_contiguous()
    close(rowwise.NormSilu.apply(x, scale), plain_norm_silu(x, scale))
    close(rowwise.NormSilu.apply(x, torch.ones(1).double().expand(8)), plain_norm_silu(x, torch.ones(8).double()))


def test_a_scale_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"over 8 numbers got a scale of shape \[7\]"):
        rowwise.NormSilu.apply(torch.ones(5, 8), torch.ones(7))


@every_dtype
def test_norm_and_silu_of_numbers_of_any_size(dtype: torch.dtype) -> None:
    for size in (0.0, 1e-15, 1e-5, 1.0, 1e5, 1e15):
        x, scale = size * torch.randn(7, 12, dtype=dtype), 30 * torch.randn(12, dtype=dtype)
        exact = gradients(plain_norm_silu, x.double(), scale.double())
        for here, wanted in zip(gradients(rowwise.NormSilu.apply, x, scale), exact, strict=True):
            close(here, wanted)


@every_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width", [3, 17, 64])
def test_what_is_no_number_spoils_its_row_alone(bad: float, width: int, dtype: torch.dtype) -> None:
    x, scale = torch.randn(5, width, dtype=dtype), torch.ones(width, dtype=dtype)
    x[2, width - 1] = bad
    y, d_x, d_scale = gradients(rowwise.NormSilu.apply, x, scale)
    wanted = gradients(plain_norm_silu, x, scale)
    for here, other in ((y, wanted[0]), (d_x, wanted[1])):
        assert torch.equal(here.isnan(), other.isnan())
        assert here[2].isnan().any() and here[[0, 1, 3, 4]].isfinite().all()
    assert d_scale.isnan().any()


@every_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_scale_that_is_no_number_spoils_its_column_alone(bad: float, dtype: torch.dtype) -> None:
    x, scale = torch.randn(5, 17, dtype=dtype), torch.ones(17, dtype=dtype)
    scale[3] = bad
    y = rowwise.NormSilu.apply(x, scale)
    assert y.isfinite().sum(0).tolist() == [0 if column == 3 else 5 for column in range(17)]


def test_the_exponential_in_float32() -> None:
    """Silu of a norm that changes nothing: a row of one large and one small number, small ones scaled up again.

    A row of (x, 1) with x far from 0 and a scale of s gives normed numbers as close to +-s sqrt(2) as wanted.
    """
    arguments = torch.cat([torch.linspace(-85, 87, 40001), torch.linspace(-1, 1, 2001)])  # [N]
    x = torch.ones(1, len(arguments))
    y = rowwise.NormSilu.apply(x, arguments)[0].double()
    unit = 1 / math.sqrt(1 + 1e-4)
    normed = arguments.double() * torch.tensor(unit, dtype=torch.float32).double()
    exact = normed * torch.sigmoid(normed)
    error = (y - exact).abs() / exact.abs().clamp_min(1e-37)
    # Rounding of the argument alone makes |x| 2^-24 of an error where the exponential rules.
    assert (error / (2.0**-23 * (3 + normed.abs().clamp_max(90) * (normed < 0)))).max() < 1


def test_softmax_in_float32_through_a_prediction() -> None:
    """The exponential over all of its range, measured in units of the last place of float32."""
    count = 255
    logits = torch.linspace(0, -80, count).repeat(200, 1) - 0.4 * torch.rand(200, count)  # [N, bins]
    logits[:, 0] = 0
    ones = torch.ones(200, requires_grad=False)
    leaf = logits.clone().requires_grad_()
    target = two_hot_bins(count)[0].expand(200, 1)
    (d_logits,) = torch.autograd.grad(rowwise.TwoHotLoss.apply(leaf, two_hot_bins(count), target, (1.0,)), leaf, ones)
    exact = logits.double().softmax(-1)
    relative = (d_logits[:, 1:].double() / exact[:, 1:] - 1).abs() / 2.0**-23
    assert relative.max() < 6  # sum, division, product and exponential; its argument is exact, as the largest is 0
    assert relative.median() < 1.5


@every_dtype
def test_threads_do_not_change_a_bit(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    x, scale = torch.randn(3 * rowwise.TILE + 40, 65, dtype=dtype), torch.randn(65, dtype=dtype)
    bins, targets = two_hot_bins(65).to(dtype), 10 * torch.randn(len(x), 2, dtype=dtype)
    results = []
    for count in (1, 2, 3, 100):
        threads(count)
        results.append(
            [
                *gradients(rowwise.NormSilu.apply, x, scale),
                rowwise.TwoHotMean.apply(x, bins),
                *gradients(lambda logits: rowwise.TwoHotLoss.apply(logits, bins, targets, (1.0, 0.5)), x),
            ]
        )
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)


def test_a_module_with_kernels_is_the_module() -> None:
    module = Module(9)
    torch.nn.init.normal_(module.norm.weight)
    x = torch.randn(2, 3, 9)
    expected = module(x)
    use_native(module, True)
    y = module(x)
    close(y, expected)
    assert type(y.grad_fn).__name__ == "NormSiluBackward"
    assert type(module(x.double()).grad_fn).__name__ != "NormSiluBackward"  # the weight is of another precision
    assert module(x.bfloat16()).dtype is torch.bfloat16
    use_native(module, False)
    assert torch.equal(module(x), expected)


# Where they are seen by something that has no addresses


def test_in_a_compiled_module() -> None:
    mlp = MLP(5, 8, layers=2)
    expected = mlp(torch.ones(3, 5))
    use_native(mlp, True)
    torch._dynamo.reset()
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    assert_close(compiled(torch.ones(3, 5)), expected)


def test_in_an_exported_module() -> None:
    head = TwoHotHead(5, 8, layers=1)
    torch.nn.init.normal_(head.logits.weight)
    expected = head(torch.ones(3, 5))
    use_native(head, True)
    exported = torch.export.export(head, (torch.ones(3, 5),))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called and all(name.startswith("aten.") for name in called)
    for one, other in zip(exported.module()(torch.ones(3, 5)), expected, strict=True):
        assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_in_a_traced_module() -> None:
    mlp = MLP(5, 8, layers=2)
    use_native(mlp, True)
    traced = torch.jit.trace(mlp, torch.ones(3, 5))
    assert "NormSilu[" not in str(traced.inlined_graph)
    assert_close(traced(torch.ones(3, 5)), mlp(torch.ones(3, 5)))


def test_under_transformations_of_functions() -> None:
    mlp = MLP(5, 8, layers=2)
    x = torch.randn(4, 3, 5)
    expected = mlp(x)
    use_native(mlp, True)
    assert_close(torch.vmap(mlp)(x), expected)
    assert torch.func.grad(lambda x: mlp(x).sum())(x).shape == x.shape


def test_tensors_without_numbers() -> None:
    """A kernel would read at address 0."""
    with FakeTensorMode():
        fake = Module(8)
        use_native(fake, True)
        assert fake(torch.ones(3, 8)).shape == (3, 8)
        loss = two_hot_cross_entropy(torch.ones(3, 9), torch.arange(9.0), torch.ones(3, 1), native=True)
        assert loss.shape == (3,)
        assert not fits(torch.ones(3))
    head = TwoHotHead(5, 8, layers=1)
    use_native(head.to("meta"), True)
    assert head(torch.ones(3, 5, device="meta"))[1].shape == (3, 1)


def test_which_tensors_fit() -> None:
    assert fits(torch.ones(2)) and fits(torch.nn.Parameter(torch.ones(2).double()))
    for other in (torch.ones(2).bfloat16(), torch.ones(2).long(), torch.ones(2, device="meta")):
        assert not fits(other)


# Two-hot predictions


def logits_of(rows: int, bins: int, dtype: torch.dtype, scale: float = 4) -> Tensor:
    return scale * torch.randn(rows, bins, dtype=dtype)


def plain_loss(logits: Tensor, bins: Tensor, targets: Tensor, weights: tuple[float, ...]) -> Tensor:
    return two_hot_cross_entropy(logits, bins, targets, weights)


def targets_of(bins: Tensor, rows: int, count: int) -> Tensor:
    """Anywhere: between bins, on bins, outside, close to 0."""
    generator = torch.Generator().manual_seed(2)
    small = 5 * torch.randn(rows, count, generator=generator, dtype=torch.float64).to(bins)
    on = bins[torch.randint(len(bins), (rows, count), generator=generator)]
    choice = torch.randint(6, (rows, count), generator=generator)
    large = torch.tensor([0.0, 1e30, -1e30, 1e5], dtype=bins.dtype)[choice.clamp(2) - 2]
    return torch.where(choice == 0, small, torch.where(choice == 1, on, large))


@every_dtype
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.3), (0.5, 0.0, 2.0)], ids=len)
@pytest.mark.parametrize(("rows", "count"), [(1, 3), (5, 8), (5, 9), (300, 41), (600, 255), (4, 64), (7, 1), (0, 9)])
def test_two_hot_loss(rows: int, count: int, weights: tuple[float, ...], dtype: torch.dtype) -> None:
    logits, bins = logits_of(rows, count, dtype), two_hot_bins(count).to(dtype)
    targets = targets_of(bins, rows, len(weights))
    exact = gradients(lambda x: plain_loss(x, bins.double(), targets.double(), weights), logits.double())
    found = gradients(lambda x: rowwise.TwoHotLoss.apply(x, bins, targets, weights), logits)
    for here, wanted in zip(found, exact, strict=True):
        assert here.dtype is dtype
        close(here, wanted, least=1.0)


def test_gradients_of_two_hot_loss_by_differences() -> None:
    logits, bins = torch.randn(3, 9).double().requires_grad_(), two_hot_bins(9).double()
    targets = torch.tensor([[0.3, -2e9], [bins[3], 1.0], [4.0, 2e9]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rowwise.TwoHotLoss.apply(x, bins, targets, (1.0, 0.4)), (logits,))
    loss = two_hot_cross_entropy(logits, bins, targets, (1.0, 0.4), native=True)
    assert torch.autograd.grad(loss.sum(), (logits, targets), allow_unused=True)[1] is None


@every_dtype
def test_two_hot_on_a_bin_and_outside(dtype: torch.dtype) -> None:
    """All weight on one bin: the loss is that bin's."""
    bins = two_hot_bins(9).to(dtype)
    logits = logits_of(9, 9, dtype)
    close(rowwise.TwoHotLoss.apply(logits, bins, bins[:, None], (1.0,)), -logits.log_softmax(-1).diagonal())
    for bin, outside in ((0, -math.inf), (0, -1e12), (8, 1e12), (8, math.inf)):
        target = torch.full((9, 1), outside, dtype=dtype)
        close(rowwise.TwoHotLoss.apply(logits, bins, target, (1.0,)), -logits.log_softmax(-1)[:, bin])


@every_dtype
@pytest.mark.parametrize(("rows", "count"), [(1, 3), (5, 8), (5, 9), (300, 41), (600, 255), (0, 9)])
def test_two_hot_mean(rows: int, count: int, dtype: torch.dtype) -> None:
    """Small bins, as two-hot's own reach to 4.85e8 and leave no digit to compare."""
    logits, bins = logits_of(rows, count, dtype), two_hot_bins(count).to(dtype).sign() * torch.rand(count, dtype=dtype)
    exact = gradients(lambda x: TwoHot(x, bins.double()).mean, logits.double())
    for here, wanted in zip(gradients(lambda x: rowwise.TwoHotMean.apply(x, bins), logits), exact, strict=True):
        assert here.dtype is dtype
        assert here.shape == wanted.shape
        assert_close(here, wanted.to(dtype), rtol=1e-5 if dtype is torch.float32 else 1e-12, atol=1e-6)


def test_gradients_of_two_hot_mean_by_differences() -> None:
    logits = torch.randn(2, 3, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rowwise.TwoHotMean.apply(x, torch.linspace(-2, 2, 9).double()), (logits,))


@every_dtype
@pytest.mark.parametrize("count", [8, 9, 41, 255])
@pytest.mark.parametrize("level", [0.0, 1e4, -1e4, 0.1])
def test_equal_logits_predict_exactly_nothing(count: int, level: float, dtype: torch.dtype) -> None:
    mean = rowwise.TwoHotMean.apply(torch.full((3, count), level, dtype=dtype), two_hot_bins(count).to(dtype))
    assert torch.equal(mean, torch.zeros(3, 1, dtype=dtype))


@every_dtype
@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("bin", [0, 7, 8, 250, 254])
def test_one_logit_far_above_the_others_or_below(size: float, bin: int, dtype: torch.dtype) -> None:
    bins = two_hot_bins().to(dtype)
    for sign in (1, -1):
        logits = torch.randn(4, 255, dtype=dtype)
        logits[:, bin] = sign * size
        targets = torch.stack([bins[bin].expand(4), torch.ones(4, dtype=dtype)], 1)
        found = gradients(lambda x, t=targets: rowwise.TwoHotLoss.apply(x, bins, t, (1.0, 1.0)), logits)
        wanted = gradients(lambda x, t=targets: plain_loss(x, bins, t, (1.0, 1.0)), logits)
        for here, other in zip(found, wanted, strict=True):
            assert here.isfinite().all()
            close(here, other)
        mean = rowwise.TwoHotMean.apply(logits, bins)
        if sign > 0:
            assert_close(mean, bins[bin].expand(4, 1), rtol=1e-6, atol=0)


@every_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 3, 8, 39, 40])
def test_a_logit_that_is_no_number_is_not_hidden(bad: float, place: int, dtype: torch.dtype) -> None:
    logits, bins = logits_of(5, 41, dtype), two_hot_bins(41).to(dtype)
    logits[2, place] = bad
    loss, d_logits = gradients(lambda x: rowwise.TwoHotLoss.apply(x, bins, torch.ones(5, 1).to(x), (1.0,)), logits)
    mean = rowwise.TwoHotMean.apply(logits, bins)[:, 0]
    for outcome in (loss, mean, d_logits.sum(-1)):
        assert outcome.isfinite().tolist() == [True, True, False, True, True]


@every_dtype
def test_impossible_classes_have_no_share(dtype: torch.dtype) -> None:
    """A logit of minus infinity."""
    logits, bins = logits_of(5, 41, dtype), two_hot_bins(41).to(dtype)
    logits[:, 3] = -math.inf
    close(rowwise.TwoHotMean.apply(logits, bins), TwoHot(logits, bins).mean)
    target = torch.ones(5, 1, dtype=dtype)
    close(rowwise.TwoHotLoss.apply(logits, bins, target, (1.0,)), plain_loss(logits, bins, target, (1.0,)))


@every_dtype
def test_a_target_that_is_no_number_is_not_hidden(dtype: torch.dtype) -> None:
    targets = torch.tensor([[1.0, math.nan], [1.0, 2.0]], dtype=dtype)
    bins = two_hot_bins(41).to(dtype)
    found = gradients(lambda x: rowwise.TwoHotLoss.apply(x, bins, targets, (1.0, 1.0)), logits_of(2, 41, dtype))
    for outcome in found:
        assert outcome.flatten(1).isnan().any(1).tolist() == [True, False] if outcome.ndim > 1 else outcome[0].isnan()


def test_two_hot_gradients_that_do_not_lie_in_a_row() -> None:
    logits, bins = logits_of(400, 41, torch.float64), two_hot_bins(41).double()
    targets = torch.randn(2, 400).double().t()
    for layout in layouts(logits):
        leaf = layout.detach().requires_grad_()
        loss = rowwise.TwoHotLoss.apply(leaf, bins, targets, (1.0, 2.0))
        for flowing in (torch.ones(()).double().expand(400), torch.randn(400, 2).double()[:, 0]):
            (found,) = torch.autograd.grad(loss, leaf, flowing, retain_graph=True)
            plain = plain_loss(other := logits.clone().requires_grad_(), bins, targets, (1.0, 2.0))
            close(found, torch.autograd.grad(plain, other, flowing)[0])


def test_what_does_not_fit_together_is_named() -> None:
    """A kernel would read beyond the end."""
    logits, bins = torch.zeros(3, 9), two_hot_bins(9)
    for targets, weights in ((torch.zeros(3, 2), (1.0,)), (torch.zeros(2, 1), (1.0,)), (torch.zeros(1, 1), (1.0,))):
        with pytest.raises(ValueError, match=r"Targets have shape .* for 3 rows"):
            rowwise.TwoHotLoss.apply(logits, bins, targets, weights)
    with pytest.raises(ValueError, match=r"Logits of 9 bins got bins of shape \[8\]"):
        rowwise.TwoHotMean.apply(logits, two_hot_bins(8))


@pytest.mark.parametrize("native", [False, True])
def test_two_hot_cross_entropy_of_any_batch(native: bool) -> None:
    logits, bins = torch.randn(2, 3, 41).requires_grad_(), two_hot_bins(41)
    targets = torch.randn(2, 3, 2)
    loss = two_hot_cross_entropy(logits, bins, targets, (1.0, 0.5), native)
    assert (type(loss.grad_fn).__name__ == "UnflattenBackward0") == native or loss.shape == (2, 3)
    parts = [two_hot_cross_entropy(logits, bins, target) for target in targets.split(1, -1)]
    close(loss.detach(), (parts[0] + 0.5 * parts[1]).detach())
    assert two_hot_cross_entropy(logits.bfloat16(), bins, targets, (1.0, 0.5), native).dtype is torch.float32


def test_a_head_with_kernels_is_the_head() -> None:
    head = TwoHotHead(6, 16, layers=2)
    torch.nn.init.normal_(head.logits.weight, std=0.1)
    features = torch.randn(4, 5, 6)
    logits, mean = head(features)
    use_native(head, True)
    for one, other in zip(head(features), (logits, mean), strict=True):
        assert one.shape == other.shape
        assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
    assert type(head(features)[1].grad_fn).__name__ == "TwoHotMeanBackward"
