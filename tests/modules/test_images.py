"""The stages of images give the numbers and gradients of their plain definitions, however they are computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from dreamer_torchrl.kernels import image_operators
from dreamer_torchrl.modules import images
from dreamer_torchrl.modules.images import doubled_pixels, doubled_stage, pixel_error, pooled_stage

Stage = Callable[..., Tensor]
SHAPES = {"batch": (5, 8, 12, 3), "one": (1, 6, 10, 4), "thin": (3, 2, 4, 2)}


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.movedim(-1, 1), weight, bias, padding=2).movedim(1, -1)


def normed(x: Tensor, scale: Tensor) -> Tensor:
    return F.silu(x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * scale)


def plain_pooled(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    blocks = convolved(x, weight, bias).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return normed(blocks.amax((2, 4)), scale)


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def plain_doubled(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return normed(convolved(repeated(x), weight, bias), scale)


def plain_pixels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return convolved(repeated(x), weight, bias).sigmoid()


PAIRS = {pooled_stage: plain_pooled, doubled_stage: plain_doubled, doubled_pixels: plain_pixels}
every_stage = pytest.mark.parametrize("stage", PAIRS, ids=[stage.__name__ for stage in PAIRS])


def inputs_of(stage: Stage, shape: tuple[int, ...] = SHAPES["batch"], flat: bool = False) -> list[Tensor]:
    """Image, kernel, bias and, where there is a norm, its scale; a flat image has one colour."""
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, (6, shape[-1], 5, 5), (6,), (6,)][: 3 if stage is doubled_pixels else 4]
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    if flat:
        tensors[0] = tensors[0][:1, :1, :1].expand(shape).clone()
    return tensors


def with_gradients(function: Stage, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """What comes out, and the gradients of a weighted sum of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, leaves, weights)


@pytest.fixture
def plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that GPUs go."""
    monkeypatch.setattr(images, "by_operators", never)


def never(x: Tensor) -> bool:
    return False


@every_stage
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("flat", [False, True], ids=["any", "flat"])
@pytest.mark.parametrize("at_a_time", [1, 2, 100])
def test_stages_are_their_definition(
    stage: Stage, shape: tuple[int, ...], flat: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    halving = stage is pooled_stage
    monkeypatch.setattr(image_operators, "CHUNK_BYTES", at_a_time * shape[1] * shape[2] * (6 if halving else 24) * 8)
    tensors = inputs_of(stage, shape, flat)
    assert_close(with_gradients(stage, tensors), with_gradients(PAIRS[stage], tensors), rtol=1e-10, atol=1e-10)


@every_stage
@pytest.mark.usefixtures("plain_operations")
def test_the_way_of_gpus_is_the_definition_too(stage: Stage) -> None:
    for flat in (False, True):
        tensors = inputs_of(stage, flat=flat)
        assert_close(with_gradients(stage, tensors), with_gradients(PAIRS[stage], tensors), rtol=1e-10, atol=1e-10)


@every_stage
def test_gradients_are_slopes(stage: Stage) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs_of(stage, (2, 4, 2, 2))]
    assert torch.autograd.gradcheck(stage, tensors)


@every_stage
def test_without_gradient_the_numbers_are_the_same(stage: Stage) -> None:
    tensors = inputs_of(stage)
    with torch.no_grad():
        assert_close(stage(*tensors), PAIRS[stage](*tensors), rtol=1e-10, atol=1e-10)


def test_a_tie_of_two_of_three_and_of_four_shares_the_gradient() -> None:
    """A kernel that passes the image on: the gradient of each pixel shows who was a maximum."""
    blocks = torch.tensor([[[3.0, 3], [1, 2]], [[3, 0], [3, 3]], [[3, 3], [3, 3]], [[1, 0], [3, 2]]])
    image = blocks.double().reshape(4, 2, 2, 1).requires_grad_()
    same = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    same[0, 0, 2, 2] = 1
    one = torch.ones(1, dtype=torch.float64)
    pooled_stage(image, same, 0 * one, one).sum().backward()
    share = image.grad / image.grad.sum((1, 2, 3), keepdim=True)
    expected = [[[1 / 2, 1 / 2], [0, 0]], [[1 / 3, 0], [1 / 3, 1 / 3]], [[1 / 4] * 2] * 2, [[0, 0], [1, 0]]]
    assert_close(share.squeeze(-1), torch.tensor(expected, dtype=torch.float64))


@every_stage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_near(stage: Stage, dtype: torch.dtype) -> None:
    image, *parameters = inputs_of(stage)
    parameters = [parameter.float() for parameter in parameters]
    image = image.to(dtype).double()
    exact = with_gradients(PAIRS[stage], [image, *map(torch.Tensor.double, parameters)])
    near = with_gradients(stage, [image.to(dtype), *parameters])
    assert [value.dtype for value in near] == [dtype, dtype] + [torch.float32] * len(parameters)
    limit = 1e-5 if dtype is torch.float32 else 0.05
    for value, wanted in zip(near, exact, strict=True):
        if stage is pooled_stage and dtype is torch.bfloat16 and value is not near[0]:
            continue  # rounding makes other pixels the largest
        assert (value.double() - wanted).abs().max() < limit * wanted.abs().max()


@every_stage
def test_the_image_gets_no_gradient_that_nobody_wants(stage: Stage) -> None:
    image, *parameters = inputs_of(stage)
    parameters = [parameter.requires_grad_() for parameter in parameters]
    stage(image, *parameters).sum().backward()
    assert image.grad is None
    assert all(parameter.grad.any() for parameter in parameters)


def test_compiling_breaks_no_graph_and_changes_nothing() -> None:
    sets = [inputs_of(stage, (5, 8, 12, 6)) for stage in PAIRS]
    arguments = [*sets[0], *sets[1][1:], *sets[2][1:]]

    def chained(image: Tensor, *p: Tensor) -> Tensor:
        return doubled_pixels(doubled_stage(pooled_stage(image, *p[:3]), *p[3:6]), *p[6:])

    compiled = torch.compile(chained, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, arguments), with_gradients(chained, arguments))


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("channels_first", [False, True])
def test_pixels_cost_their_squared_error(batch: tuple[int, ...], channels_first: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(*batch, 4, 6, 3, generator=generator, dtype=torch.float64)
    observation = torch.randint(256, (*batch, 4, 6, 3), generator=generator, dtype=torch.uint8)
    if channels_first:
        prediction, observation = prediction.movedim(-1, -3), observation.movedim(-1, -3)

    def cost(pixels: Tensor) -> Tensor:
        return pixel_error(pixels, observation)

    def plain(pixels: Tensor) -> Tensor:
        return (pixels - observation.double() / 255).square().sum((-1, -2, -3))

    def close(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
        assert_close(a, b, rtol=1e-6, atol=1e-6)  # bytes become float32

    close(with_gradients(cost, [prediction]), with_gradients(plain, [prediction]))
