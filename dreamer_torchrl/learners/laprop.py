"""LaProp with adaptive gradient clipping and linear warm-up: the optimizer of the official DreamerV3."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dreamer_torchrl.agents import backend
from dreamer_torchrl.learners.capturable import CapturableOptimizer, foreach_norm


class LaProp(CapturableOptimizer):
    """Normalise each gradient by its second moment, then average it: Adam's two steps, the other way round.

    For each tensor and its update number `n = 1, 2, ...`, with whole-tensor norms, biases and scales included:

        g     <- g / max(1, |g| / (clip * max(clip_floor, |param|)))
        nu    <- beta2 * nu + (1 - beta2) * g^2
        mu    <- beta1 * mu + (1 - beta1) * g / (sqrt(nu / (1 - beta2^n)) + eps)
        param <- param - lr * min(1, (n - 1) / warmup) * mu / (1 - beta1^n)

    so the first update moves nothing, unless `warmup` is 0. A parameter whose `grad` is None is left alone, and its `n`
    too. `param.grad` is only read.

    TorchRL's `DreamerV3Optimizer` counts on the host, so that no CUDA graph can hold it, and reads a flag back to skip.

    Args:
        params: parameters or parameter groups, float32 or float64. A group may set any of the options for itself.
        lr: learning rate after the warm-up; of a tensor, a captured graph follows what a schedule writes into it.
        betas: decay of the momentum `mu` and of the second moment `nu`.
        eps: turns 0 / 0 into 0 where a gradient was always zero; far too small to change anything else.
        clip: largest norm of a gradient as a share of its parameter's norm; `math.inf` for no clipping.
        clip_floor: smallest parameter norm that counts, so that a parameter can leave zero.
        warmup: updates until the full learning rate, 0 for none.
        capturable: count on the parameter's device, so that a CUDA graph can replay the step. Nothing is read back.
        native: let a kernel in C do all of it in one pass, on a CPU and for contiguous tensors; see `kernels`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = LaProp([weight], lr=0.1, warmup=0)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9000, -1.9000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        clip_floor: float = 1e-3,
        warmup: int = 1000,
        *,
        capturable: bool = False,
        native: bool = False,
    ) -> None:
        formula = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "clip_floor": clip_floor, "warmup": warmup}
        super().__init__(params, formula | {"capturable": capturable, "native": native})

    def checks(self, group: dict[str, Any]) -> Iterable[tuple[str, Any, bool, str]]:
        yield from super().checks(group)
        tiny = torch.finfo(torch.float32).tiny
        yield "eps", group["eps"], tiny <= group["eps"] < math.inf, f"Below {tiny:.2g}, float32 gives 0 / 0: try 1e-20"
        yield "clip", group["clip"], group["clip"] > 0, "Choose a positive share, or math.inf for no clipping"
        yield "clip_floor", group["clip_floor"], 0 < group["clip_floor"] < math.inf, "Choose a small positive norm"
        yield "warmup", group["warmup"], 0 <= group["warmup"] < math.inf, "Choose a number of updates, 0 for none"

    def update_group(self, params: list[Tensor], group: dict[str, Any], where: Tensor | None) -> None:
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for param in params:
            alike.setdefault((param.device, param.dtype), []).append(param)
        for same in alike.values():
            update = backend.laprop if group["native"] and backend.laprop_fits(same) else _update_foreach
            update(same, [self.state[p] for p in same], group, where)


def _update_foreach(
    params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any], where: Tensor | None
) -> None:
    """All P tensors in each operation. Numbers per tensor stay tensors: no branch for `capturable`."""
    beta1, beta2 = group["betas"]
    steps, mus, nus = ([state[name] for state in states] for name in ("step", "mu", "nu"))
    grads = [param.grad for param in params]
    zero = params[0].new_zeros(())  # a number would become a tensor each time
    one = 1 if where is None else where.to(steps[0])  # on the device where the number is
    torch._foreach_add_(steps, one if where is None else [one] * len(steps))  # a single tensor would be read back
    n = torch.stack(steps).double()  # [P]; in float32, 1 - 0.999^1 keeps four digits
    lr = group["lr"] * ((n - 1) / group["warmup"]).clamp(max=1) if group["warmup"] else group["lr"]
    nu_factors = (1 / (1 - beta2**n)).to(zero)  # [P]
    mu_factors = _where(where, (lr / (1 - beta1**n)).to(zero), 0)  # [P]
    limits = group["clip"] * foreach_norm(params).clamp(min=group["clip_floor"])  # [P]
    excess = (foreach_norm(grads) / limits).clamp(min=1)  # [P]
    updates = [_where(where, update, zero) for update in torch._foreach_div(grads, excess.unbind())]
    torch._foreach_mul_(nus, beta2 if where is None else torch.where(where, zero + beta2, 1.0))
    torch._foreach_addcmul_(nus, updates, updates, 1 - beta2)
    scales = torch._foreach_mul(nus, nu_factors.unbind())
    torch._foreach_sqrt_(scales)
    torch._foreach_add_(scales, group["eps"])
    torch._foreach_div_(updates, scales)
    updates = [_where(where, update, mu) for update, mu in zip(updates, mus, strict=True)]
    torch._foreach_lerp_(mus, updates, 1 - beta1)
    torch._foreach_addcmul_(params, mus, mu_factors.unbind(), -1)


def _where(where: Tensor | None, new: Tensor | float, old: Tensor | float) -> Tensor | float:
    return new if where is None else torch.where(where, new, old)
