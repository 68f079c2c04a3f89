"""The stages of images give the numbers and gradients of their definitions, with and without the operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from dreamer_torchrl.kernels import attach, image_operators
from dreamer_torchrl.modules.images import ImageStage, PatchPixels, PatchStage, PixelError, PixelStage, UpsampleStage

Stage = Callable[..., Tensor]
SHAPES = {"batch": (5, 8, 12, 3), "one": (1, 6, 10, 4), "thin": (3, 2, 4, 2)}
NAMES = {
    ImageStage: ("conv.weight", "conv.bias", "norm.norm.weight"),
    UpsampleStage: ("conv.weight", "conv.bias", "norm.norm.weight"),
    PixelStage: ("weight", "bias"),
}
every_stage = pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.movedim(-1, 1), weight, bias, padding=2).movedim(1, -1)


def normed(x: Tensor, scale: Tensor) -> Tensor:
    return F.silu(x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * scale)


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def definition(kind: type[nn.Module]) -> Stage:
    """What a stage computes, written plainly."""

    def halving(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        blocks = convolved(x, weight, bias).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return normed(blocks.amax((2, 4)), scale)

    def doubling(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return normed(convolved(repeated(x), weight, bias), scale)

    def pixels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolved(repeated(x), weight, bias).sigmoid()

    return {ImageStage: halving, UpsampleStage: doubling, PixelStage: pixels}[kind]


def stage(kind: type[nn.Module], attached: bool, channels: int = 3) -> Stage:
    """A stage as a function of the image and its parameters."""
    module = kind(channels, 6)
    if attached:
        attach(module, native=False)
        assert type(module) is not kind
    return lambda x, *parameters: functional_call(module, dict(zip(NAMES[kind], parameters, strict=True)), (x,))


def inputs_of(kind: type[nn.Module], shape: tuple[int, ...] = SHAPES["batch"], flat: bool = False) -> list[Tensor]:
    """Image, kernel, bias and, where there is a norm, its scale; a flat image has one colour."""
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, (6, shape[-1], 5, 5), (6,), (6,)][: 1 + len(NAMES[kind])]
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


@every_stage
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("at_a_time", [None, 1, 2, 100], ids=["plain", "1", "2", "100"])
def test_stages_are_their_definition(
    kind: type[nn.Module], shape: tuple[int, ...], at_a_time: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one colour, where all pixels share the gradient of a maximum."""
    if at_a_time:
        channels = 6 if kind is ImageStage else 24
        monkeypatch.setattr(image_operators, "CHUNK_BYTES", at_a_time * shape[1] * shape[2] * channels * 8)
    function = stage(kind, attached=at_a_time is not None)
    for flat in (False, True):
        tensors = inputs_of(kind, shape, flat)
        found, wanted = with_gradients(function, tensors), with_gradients(definition(kind), tensors)
        assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            assert_close(function(*tensors), wanted[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attached", [False, True])
def test_a_tie_of_two_of_three_and_of_four_shares_the_gradient(attached: bool) -> None:
    """A kernel that passes the image on: the gradient of each pixel shows who was a maximum."""
    blocks = torch.tensor([[[3.0, 3], [1, 2]], [[3, 0], [3, 3]], [[3, 3], [3, 3]], [[1, 0], [3, 2]]])
    image = blocks.double().reshape(4, 2, 2, 1).requires_grad_()
    same = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    same[0, 0, 2, 2] = 1
    one = torch.ones(1, dtype=torch.float64)
    stage(ImageStage, attached)(image, same, 0 * one, one).sum().backward()
    share = image.grad / image.grad.sum((1, 2, 3), keepdim=True)
    expected = [[[1 / 2, 1 / 2], [0, 0]], [[1 / 3, 0], [1 / 3, 1 / 3]], [[1 / 4] * 2] * 2, [[0, 0], [1, 0]]]
    assert_close(share.squeeze(-1), torch.tensor(expected, dtype=torch.float64))


@every_stage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_near(kind: type[nn.Module], dtype: torch.dtype) -> None:
    image, *parameters = inputs_of(kind)
    parameters = [parameter.float() for parameter in parameters]
    image = image.to(dtype).double()
    exact = with_gradients(definition(kind), [image, *map(torch.Tensor.double, parameters)])
    near = with_gradients(stage(kind, attached=True), [image.to(dtype), *parameters])
    assert [value.dtype for value in near] == [dtype, dtype] + [torch.float32] * len(parameters)
    limit = 1e-5 if dtype is torch.float32 else 0.05
    for value, wanted in zip(near, exact, strict=True):
        if kind is ImageStage and dtype is torch.bfloat16 and value is not near[0]:
            continue  # rounding makes other pixels the largest
        assert (value.double() - wanted).abs().max() < limit * wanted.abs().max()


@every_stage
def test_the_image_gets_no_gradient_that_nobody_wants(kind: type[nn.Module]) -> None:
    image, *parameters = inputs_of(kind)
    parameters = [parameter.requires_grad_() for parameter in parameters]
    stage(kind, attached=True)(image, *parameters).sum().backward()
    assert image.grad is None
    assert all(parameter.grad.any() for parameter in parameters)


@pytest.mark.slow
def test_compiling_breaks_no_graph_and_changes_nothing() -> None:
    chain = nn.Sequential(ImageStage(3, 6), UpsampleStage(6, 4), PixelStage(4, 3))
    attach(chain, native=False)
    image = torch.randn(5, 8, 12, 3)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, [image]), with_gradients(chain, [image]))


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("attached", [False, True])
def test_pixels_cost_their_squared_error(batch: tuple[int, ...], attached: bool) -> None:
    generator, cost = torch.Generator().manual_seed(0), PixelError()
    if attached:
        attach(cost, native=False)
    prediction = torch.rand(*batch, 4, 6, 3, generator=generator, dtype=torch.float64)
    observation = torch.randint(256, (*batch, 4, 6, 3), generator=generator, dtype=torch.uint8)

    def plain(pixels: Tensor) -> Tensor:
        return (pixels - observation.double() / 255).square().sum((-1, -2, -3))

    found = with_gradients(lambda pixels: cost(pixels, observation), [prediction])
    assert_close(found, with_gradients(plain, [prediction]), rtol=1e-6, atol=1e-6)  # bytes become float32


def test_patches_are_strided_convolutions_whose_kernels_are_the_stride() -> None:
    down, up, x = PatchStage(3, 8, 4).double(), PatchPixels(8, 3, 4).double(), torch.randn(2, 8, 12, 3).double()
    kernel = down.linear.weight.unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2)  # [8, 3, 4, 4]
    coarse = F.conv2d(x.movedim(-1, 1), kernel, down.linear.bias, stride=4).movedim(1, -1)
    assert_close(down(x), normed(coarse, down.after.norm.weight))
    kernel = up.weight.unflatten(0, (4, 4, 3)).permute(3, 2, 0, 1)  # [8, 3, 4, 4]
    bias = up.bias.unflatten(0, (4, 4, 3)).repeat(2, 3, 1)  # [8, 12, 3]
    fine = F.conv_transpose2d(down(x).movedim(-1, 1), kernel, stride=4).movedim(1, -1)
    assert_close(up(down(x)), torch.sigmoid(fine + bias))
