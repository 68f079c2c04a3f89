"""Several learners that train one agent: each has its share of the batch, and all take the step of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict, TensorDictBase
from torch import Tensor


class RankLost(RuntimeError):
    """Another rank ended or hangs."""


class Ranks:
    """The processes of ``group``, of which this is one; without a group, this process alone.

    All call the same methods in the same order. No `DistributedDataParallel`: what one update exchanges is one flat
    tensor, which a CUDA graph captures, and the optimizer steps after all gradients are there.

    Example:
        >>> alone = Ranks()
        >>> alone.size, alone.gather(torch.ones(2))
        (1, tensor([1., 1.]))
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def gather(self, values: Tensor) -> Tensor:
        """The values ``[n, ...]`` of all ranks, ``[size * n, ...]``, without their gradient."""
        if self.group is None:
            return values
        parts = [torch.empty_like(values, requires_grad=False) for _ in range(self.size)]
        with self.reached():
            dist.all_gather(parts, values.detach().contiguous(), self.group)
        return torch.cat(parts)

    def average(self, gradients: Sequence[Tensor], losses: TensorDictBase) -> TensorDictBase:
        """Average gradients in place, and give averages of losses and metrics, which are numbers."""
        if self.group is None:
            return losses
        numbers = torch.stack([value.detach().to(gradients[0]) for value in losses.values()])
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), numbers])
        with self.reached():
            dist.all_reduce(flat, group=self.group)
        flat /= self.size
        *parts, numbers = flat.split([*(gradient.numel() for gradient in gradients), len(numbers)])
        torch._foreach_copy_(gradients, [part.view_as(to) for part, to in zip(parts, gradients, strict=True)])
        return TensorDict(dict(zip(losses.keys(), numbers.unbind(), strict=True)))

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values of rank 0."""
        if self.group is not None:
            with self.reached():
                for tensor in tensors:
                    dist.broadcast(tensor.data, 0, self.group)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Inside, the group's errors become one that says what happened."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            told = f"Rank {self.rank} of {self.size} does not reach the others, one of which ended or hangs ({reason})."
            raise RankLost(f"{told} Its own message, or torchrun's report, says which and why.") from error

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise where these are not the same on all ranks, as far as their sums tell."""
        sums = torch.stack([tensor.detach().double().sum().cpu() for tensor in tensors])[None]  # [1, N]
        found = self.gather(sums.nan_to_num())  # [size, N]
        if different := (found != found[:1]).any(1).nonzero().flatten().tolist():
            told = f"{what} of rank {', '.join(map(str, different))} are not those of rank 0"
            raise RuntimeError(f"{told}: continue from the last checkpoint, and report this as a bug.")

    def gather_with_gradient(self, values: Tensor) -> Tensor:
        """`gather` for a loss of the whole batch, which all ranks compute: `average` gives its gradient."""
        return values if self.group is None else _Gather.apply(values, self)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return ranks.gather(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """All ranks have this gradient; each passes on that of its own values, as a part of a mean over ranks."""
        ranks = context.ranks
        return gradient.chunk(ranks.size)[ranks.rank] * ranks.size, None
