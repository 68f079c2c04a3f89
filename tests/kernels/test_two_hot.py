"""Two-hot predictions and losses by the kernels: the numbers and gradients of the plain ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dreamer_torchrl.kernels import attach, rowwise
from dreamer_torchrl.modules.distributions import TwoHotDist, two_hot_bins, two_hot_cross_entropy
from dreamer_torchrl.modules.heads import TwoHotCrossEntropy, TwoHotHead
from tests.kernels.compilers import every_dtype, needs_compiler
from tests.kernels.rowwise_examples import close, gradients, layouts

pytestmark = needs_compiler


def logits_of(rows: int, bins: int, dtype: torch.dtype) -> Tensor:
    return 4 * torch.randn(rows, bins, dtype=dtype)


def targets_of(bins: Tensor, rows: int, count: int) -> Tensor:
    """Anywhere: between bins, on bins, outside, close to 0."""
    generator = torch.Generator().manual_seed(2)
    small = 5 * torch.randn(rows, count, generator=generator, dtype=torch.float64).to(bins)
    on = bins[torch.randint(len(bins), (rows, count), generator=generator)]
    choice = torch.randint(6, (rows, count), generator=generator)
    large = torch.tensor([0.0, 1e30, -1e30, 1e5], dtype=bins.dtype)[choice.clamp(2) - 2]
    return torch.where(choice == 0, small, torch.where(choice == 1, on, large))


@every_dtype
@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.0, 2.0)], ids=len)
@pytest.mark.parametrize(("rows", "count"), [(5, 8), (300, 41), (4, 255), (7, 1), (0, 9)])
def test_two_hot_loss(rows: int, count: int, weights: tuple[float, ...], dtype: torch.dtype) -> None:
    logits, bins = logits_of(rows, count, dtype), two_hot_bins(count).to(dtype)
    targets = targets_of(bins, rows, len(weights))
    exact = gradients(lambda x: two_hot_cross_entropy(x, bins.double(), targets.double(), weights), logits.double())
    found = gradients(lambda x: rowwise.TwoHotLoss.apply(x, bins, targets, weights), logits)
    for here, wanted in zip(found, exact, strict=True):
        assert here.dtype is dtype
        close(here, wanted, least=1.0)


@every_dtype
@pytest.mark.parametrize(("rows", "count"), [(5, 8), (300, 41), (4, 255), (0, 9)])
def test_two_hot_mean(rows: int, count: int, dtype: torch.dtype) -> None:
    """Small bins, as two-hot's own reach to 4.85e8 and leave no digit to compare."""
    logits, bins = logits_of(rows, count, dtype), two_hot_bins(count).to(dtype).sign() * torch.rand(count, dtype=dtype)
    exact = gradients(lambda x: TwoHotDist(x, bins.double()).mean, logits.double())
    for here, wanted in zip(gradients(lambda x: rowwise.TwoHotMean.apply(x, bins), logits), exact, strict=True):
        assert here.dtype is dtype
        assert here.shape == wanted.shape
        assert_close(here, wanted.to(dtype), rtol=1e-5 if dtype is torch.float32 else 1e-12, atol=1e-6)


@every_dtype
@pytest.mark.parametrize("count", [8, 41, 255])
@pytest.mark.parametrize("level", [0.0, -1e4, 0.1])
def test_equal_logits_predict_exactly_nothing(count: int, level: float, dtype: torch.dtype) -> None:
    mean = rowwise.TwoHotMean.apply(torch.full((3, count), level, dtype=dtype), two_hot_bins(count).to(dtype))
    assert torch.equal(mean, torch.zeros(3, 1, dtype=dtype))


@every_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 8, 40])
def test_a_logit_that_is_no_number_is_not_hidden(bad: float, place: int, dtype: torch.dtype) -> None:
    logits, bins = logits_of(5, 41, dtype), two_hot_bins(41).to(dtype)
    logits[2, place] = bad
    loss, d_logits = gradients(lambda x: rowwise.TwoHotLoss.apply(x, bins, torch.ones(5, 1).to(x), (1.0,)), logits)
    mean = rowwise.TwoHotMean.apply(logits, bins)[:, 0]
    for outcome in (loss, mean, d_logits.sum(-1)):
        assert outcome.isfinite().tolist() == [True, True, False, True, True]


def test_two_hot_gradients_that_do_not_lie_in_a_row() -> None:
    logits, bins = logits_of(40, 41, torch.float64), two_hot_bins(41).double()
    targets = torch.randn(2, 40).double().t()
    for layout in layouts(logits):
        leaf = layout.detach().requires_grad_()
        loss = rowwise.TwoHotLoss.apply(leaf, bins, targets, (1.0, 2.0))
        for flowing in (torch.ones(()).double().expand(40), torch.randn(40, 2).double()[:, 0]):
            (found,) = torch.autograd.grad(loss, leaf, flowing, retain_graph=True)
            plain = two_hot_cross_entropy(other := logits.clone().requires_grad_(), bins, targets, (1.0, 2.0))
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
    cross_entropy = rowwise.NativeTwoHotCrossEntropy() if native else TwoHotCrossEntropy()
    loss = cross_entropy(logits, bins, targets, (1.0, 0.5))
    assert (type(loss.grad_fn).__name__ == "UnflattenBackward0") == native or loss.shape == (2, 3)
    parts = [two_hot_cross_entropy(logits, bins, target) for target in targets.split(1, -1)]
    close(loss.detach(), (parts[0] + 0.5 * parts[1]).detach())
    assert cross_entropy(logits.bfloat16(), bins, targets, (1.0, 0.5)).dtype is torch.float32


def test_a_head_with_kernels_is_the_head() -> None:
    head = TwoHotHead(6, 16, layers=2)
    torch.nn.init.normal_(head.logits.weight, std=0.1)
    features = torch.randn(4, 5, 6)
    logits, mean = head(features)
    attach(head, True)
    for one, other in zip(head(features), (logits, mean), strict=True):
        assert one.shape == other.shape
        assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
    assert type(head(features)[1].grad_fn).__name__ == "TwoHotMeanBackward"
