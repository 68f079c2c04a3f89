"""Adam with clipping by the norm of all gradients and decay of all weights: the optimizer of Dreamer V1 and V2."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from dreamer_torchrl.learners.capturable import CapturableOptimizer, foreach_norm


class ClippedAdam(CapturableOptimizer):
    """Adam as Keras has it, on gradients that are clipped together, after a decay of the weights.

    For the parameters of a group that have a gradient, and the group's update number `n = 1, 2, ...`:

        g     <- g / max(1, |g| / clip), where |g| is the norm over all of them
        param <- param * (1 - decay), whatever the learning rate
        mu    <- beta1 * mu + (1 - beta1) * g
        nu    <- beta2 * nu + (1 - beta2) * g^2
        param <- param - lr * sqrt(1 - beta2^n) / (1 - beta1^n) * mu / (sqrt(nu) + eps)

    `torch.optim.Adam` has `eps` inside the correction, which makes it smaller by `sqrt(1 - beta2^n)`, 31 times at
    first; `AdamW` multiplies its decay by the learning rate. So torch's fused pass gets the corrected rate and a count
    without end, at which its own corrections are 1. The pass writes the clipped gradients into `param.grad`.

    Args:
        params: parameters or parameter groups, float32 or float64; each group lies on one device and is clipped alone.
        lr: learning rate; of a tensor, a captured graph follows what a schedule writes into it.
        betas: decay of the momentum `mu` and of the second moment `nu`.
        eps: 1e-5 in V2, 1e-7 in V1.
        clip: largest norm of a group's gradients; `math.inf` for no clipping.
        decay: share of each weight, bias and scale that every update takes away: 1e-6 in V2, 0 in V1.
        capturable: count on the parameter's device, so that a CUDA graph can replay the step. Nothing is read back.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = ClippedAdam([weight], lr=0.1)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9000, -1.9000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        clip: float = 100.0,
        decay: float = 0.0,
        *,
        capturable: bool = False,
    ) -> None:
        formula = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "decay": decay}
        super().__init__(params, formula | {"capturable": capturable})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        states = [self.state[param] for param in self.param_groups[-1]["params"]]
        for state in states:
            state["step"] = states[0]["step"]  # one number for all

    def checks(self, group: dict[str, Any]) -> Iterable[tuple[str, Any, bool, str]]:
        yield from super().checks(group)
        yield "eps", group["eps"], 0 < group["eps"] < math.inf, "Choose a small positive number"
        yield "clip", group["clip"], group["clip"] > 0, "Choose a positive norm, or math.inf for no clipping"
        yield "decay", group["decay"], 0 <= group["decay"] < 1, "Choose a share from 0 up to, but not including, 1"

    def update_group(self, params: list[Tensor], group: dict[str, Any], where: Tensor | None) -> None:
        states = [self.state[param] for param in params]
        grads, step = [param.grad for param in params], states[0]["step"]
        step.add_(1 if where is None else where.to(step))
        n, (beta1, beta2) = step.double(), group["betas"]
        rate = group["lr"] * (1 - beta2**n).sqrt() / (1 - beta1**n)  # in float32, 1 - 0.999^1 keeps four digits
        excess = (foreach_norm(grads).norm() / group["clip"]).clamp(min=1)
        if group["decay"]:
            kept = 1 - group["decay"] if where is None else 1 - group["decay"] * where.to(params[0])
            torch._foreach_mul_(params, kept)
        adam(
            *(params, grads, [state["mu"] for state in states], [state["nu"] for state in states], []),
            state_steps=[excess.new_full((), math.inf, dtype=torch.float32)] * len(params),
            fused=True,
            grad_scale=excess.float(),
            found_inf=None if where is None else 1 - where.float(),
            lr=rate.float() if rate.is_cuda else rate,  # the kernel for GPUs reads float32
            eps=group["eps"],
            **{"amsgrad": False, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0, "maximize": False},
        )
