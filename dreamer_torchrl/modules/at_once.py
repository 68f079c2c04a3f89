"""Gradients of the weights that a loop over time uses: one product over all its steps instead of one at each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class WeightsOfAllSteps(torch.autograd.Function):
    """Hand on what each step of a loop adds to its products, and give the weights of these products their gradients.

    In the loop the weights are used detached. Backwards, the gradient of all that was added is that of the products, of
    all steps at once; with what the weights were multiplied with, which the loop has noted by then, it makes theirs.

    Example:
        >>> weight, bias = torch.ones(3, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> x, seen = torch.randn(5, 7, 3), []  # [B, T, in]
        >>> added = WeightsOfAllSteps.apply(bias.expand(5, 7, 2), [seen], weight)
        >>> outputs = []
        >>> for now, addend in zip(x.unbind(1), added.unbind(1), strict=True):
        ...     seen.append(now)
        ...     outputs.append(torch.addmm(addend, now, weight.detach()))
        >>> torch.stack(outputs).sum().backward()
        >>> weight.grad.allclose(x.sum((0, 1)).unsqueeze(1).expand(3, 2), atol=1e-5)
        True
    """

    @staticmethod
    def forward(ctx: Any, added: Tensor, seen: Sequence[list[Tensor]], *weights: Tensor) -> Tensor:
        """Take ``[B, T, out]``, and per weight ``[in, out]``, or ``[g, in / g, out / g]`` of blocks, a list.

        The loop puts its T inputs ``[B, in]`` into the lists, detached.
        """
        ctx.seen, ctx.blocks = seen, [len(weight) if weight.ndim == 3 else 0 for weight in weights]
        return added.view_as(added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """``[B, T, out]`` to that of what was added, and those of the weights."""
        pairs = zip(ctx.seen, ctx.blocks, strict=True)
        return gradient, None, *(_product(torch.stack(steps, 1), gradient, blocks) for steps, blocks in pairs)


def _product(x: Tensor, y: Tensor, blocks: int) -> Tensor:
    if blocks:
        return block_product(x, y, blocks)
    return x.flatten(0, 1).t() @ y.flatten(0, 1)


def block_product(x: Tensor, y: Tensor, blocks: int) -> Tensor:
    """Sum over all steps ``[B, T]`` of the outer products of chunk k of x with chunk k of y: ``[g, X / g, Y / g]``."""
    left, right = (z.flatten(0, 1).unflatten(1, (blocks, -1)).transpose(0, 1) for z in (x, y))  # [g, N, ...]
    return torch.bmm(left.transpose(1, 2), right)
