"""Layers give the official numbers, in every precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dreamer_torchrl.modules.images import interleaved, max_pool, parity_kernels
from dreamer_torchrl.modules.layers import MLP, BlockLinear, Conv, Linear, NormSilu, RMSNorm, convolve, rms_norm

Table = dict[str, Tensor]


def load(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def test_linear_is_official(golden: Table) -> None:
    layer = load(Linear(7, 5), golden["linear/kernel"].t(), golden["linear/bias"])
    assert_close(layer(golden["linear/x"]), golden["linear/y"], rtol=1e-5, atol=1e-5)


def test_block_linear_is_official(golden: Table) -> None:
    layer = load(BlockLinear(12, 20, blocks=4), golden["blocklinear/kernel"], golden["blocklinear/bias"])
    assert_close(layer(golden["blocklinear/x"]), golden["blocklinear/y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "words"), [((7, 8), "in_features=7.*4"), ((8, 7), "out_features=7.*4")])
def test_block_linear_refuses_sizes_that_do_not_split(sizes: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BlockLinear(*sizes, blocks=4)


def test_rms_norm_is_official_down_to_the_eps_of_tiny_rows(golden: Table) -> None:
    x, scale, y = (golden[f"rmsnorm/{key}"] for key in ("x", "scale", "y"))
    assert x.abs().max(-1).values.min() < 1e-2  # below the eps, which is 1e-2 squared
    norm = RMSNorm(10)
    with torch.no_grad():
        norm.weight.copy_(scale)
    assert_close(norm(x), y, rtol=1e-5, atol=1e-6)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-4).sqrt() * scale.double()
    assert_close(rms_norm(x.double(), scale.double()), expected)


def test_the_activation_is_silu(golden: Table) -> None:
    for x, y in zip(golden["silu/x"], golden["silu/y"], strict=True):
        layer = NormSilu(10)
        nn.init.constant_(layer.norm.weight, (x.square().mean() + 1e-4).sqrt().item())  # undoes the norm
        assert_close(layer(x), y, rtol=1e-5, atol=1e-6)


def test_conv_is_official(golden: Table) -> None:
    layer = load(Conv(3, 4, 5), golden["conv/kernel"].permute(3, 2, 0, 1), golden["conv/bias"])
    y = layer(golden["conv/x"])
    assert_close(y, golden["conv/y"], rtol=1e-5, atol=2e-5)
    assert_close(max_pool(y), golden["conv/y_maxpool2"], rtol=1e-5, atol=2e-5)


def test_upsample_is_official(golden: Table) -> None:
    x = golden["upsample/x"]
    channels = x.shape[-1]
    same = torch.zeros(channels, channels, 5, 5)
    same[:, :, 2, 2] = torch.eye(channels)  # a kernel that changes nothing
    parities = convolve(x, parity_kernels(same), torch.zeros(4 * channels)).unflatten(-1, (2, 2, -1))
    assert_close(interleaved(parities), golden["upsample/y"], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Linear(4, 6), (2, 4)), (BlockLinear(4, 6, 2), (2, 4)), (MLP(4, 8, 2), (2, 4)), (Conv(3, 4, 5), (2, 6, 4, 3))],
    ids=lambda value: type(value).__name__,
)
def test_the_input_sets_the_precision_and_the_weights_stay_float32(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape)
    y = layer(x.to(dtype))
    assert y.dtype is dtype
    assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert {(parameter.dtype, parameter.grad.dtype) for parameter in layer.parameters()} == {(torch.float32,) * 2}
