"""LaProp written down one tensor after the other, which the optimizer's two fast paths must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamer_torchrl.learners.capturable import NORM_PART
from dreamer_torchrl.learners.laprop import LaProp


def adaptive_clip(param: Tensor, grad: Tensor, clip: float = 0.3, floor: float = 1e-3) -> Tensor:
    """Scale `grad` down to a norm of at most `clip * max(floor, |param|)`; a smaller one comes back as it is."""
    limit = clip * norm(param).clamp(min=floor)
    return grad / (norm(grad) / limit).clamp(min=1)


def norm(tensor: Tensor) -> Tensor:
    """Norm of a whole tensor, in two stages."""
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(p) for p in tensor.reshape(-1).split(NORM_PART)])
    )


class ReferenceLaProp(LaProp):
    """The same state and options, and the formula as it stands in the docstring."""

    def _update(self, where: Tensor | None) -> None:
        if where is not None and not where:
            return
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                mu, nu = (self.state[param][name] for name in ("mu", "nu"))
                n = self.state[param]["step"].add_(1).double()
                lr = group["lr"] * ((n - 1) / group["warmup"]).clamp(max=1) if group["warmup"] else group["lr"]
                nu_factor, mu_factor = (1 / (1 - beta2**n)).to(param), (lr / (1 - beta1**n)).to(param)
                grad = adaptive_clip(param, param.grad, group["clip"], group["clip_floor"])
                nu.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                mu.lerp_(grad / ((nu * nu_factor).sqrt() + group["eps"]), 1 - beta1)
                param.sub_(mu * mu_factor)
