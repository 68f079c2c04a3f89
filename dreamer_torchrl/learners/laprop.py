"""LaProp with adaptive gradient clipping and linear warm-up: the optimizer of the official DreamerV3."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dreamer_torchrl.agents import backend

NORM_PART = 2**17  # numbers of a tensor that are summed up in one go


class LaProp(torch.optim.Optimizer):
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_options(self.defaults | param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # The state exists before the first step: made inside a captured graph, each replay would set it to zero again.
        for param in group["params"]:
            if param.dtype not in (torch.float32, torch.float64):
                remedy = "Keep parameters in float32 and compute in lower precision, for example under torch.autocast."
                fault = f"a parameter of {param.dtype}: most steps would be rounded away"
                raise ValueError(f"LaProp cannot update {fault}. {remedy}")
            self.state[param] = {
                # float32 counts to 2^24, and by then both corrections have long been 1.
                "step": torch.zeros((), dtype=torch.float32, device=param.device if group["capturable"] else "cpu"),
                "mu": torch.zeros_like(param, memory_format=torch.preserve_format),
                "nu": torch.zeros_like(param, memory_format=torch.preserve_format),
            }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into this one, whose tensors, `capturable` and `native` stay for captured graphs."""
        state = {param: self.state[param] for group in self.param_groups for param in group["params"]}
        here = [{name: group[name] for name in ("lr", "capturable", "native")} for group in self.param_groups]
        saved_ids = (i for group in state_dict["param_groups"] for i in group["params"])
        for i, (param, slots) in zip(saved_ids, state.items(), strict=False):  # torch compares the lengths below
            saved = state_dict["state"].get(i, {})
            for name, slot in slots.items():
                if name not in saved or saved[name].shape != slot.shape:
                    found = f"has shape {tuple(saved[name].shape)}" if name in saved else "is missing"
                    fault = f"{name!r} of parameter {i}, of shape {tuple(param.shape)}, {found}"
                    remedy = "Load the state of a LaProp over the same parameters in the same order."
                    raise ValueError(f"state_dict does not fit: {fault}. {remedy}")
        super().load_state_dict(state_dict)
        for group, options in zip(self.param_groups, here, strict=True):
            lr = float(group["lr"])
            options["lr"] = options["lr"].fill_(lr) if isinstance(options["lr"], Tensor) else lr
            group.update(options)
        for param, slots in state.items():
            for name, slot in slots.items():
                slot.copy_(self.state[param][name])
        self.state.update(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._update(None)
        return loss

    @torch.no_grad()
    def step_where(self, finite: Tensor) -> None:
        """`step`, but nothing changes where `finite`, a boolean which is not read back, is False."""
        self._update(finite)

    def _update(self, where: Tensor | None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    alike.setdefault((param.device, param.dtype), []).append(param)
            for (device, _), params in alike.items():
                if device.type == "cuda" and not group["capturable"] and torch.cuda.is_current_stream_capturing():
                    fault = "counts its updates on the CPU, so this CUDA graph would repeat one update number forever"
                    raise RuntimeError(f"LaProp with capturable=False {fault}. Construct it with capturable=True.")
                update = backend.laprop if group["native"] and backend.laprop_fits(params) else _update_foreach
                update(params, [self.state[p] for p in params], group, where)


def _foreach_norm(tensors: list[Tensor]) -> Tensor:
    """Norms of whole tensors, [P]; of large ones in two stages: torch's own is 1e-4 off for two million on a CPU."""
    parts = [x.reshape(-1).split(NORM_PART) if x.numel() > NORM_PART else (x,) for x in tensors]
    norms = torch.stack(torch._foreach_norm([part for split in parts for part in split]))
    if len(norms) == len(tensors):
        return norms
    return torch.stack(torch._foreach_norm(norms.split([len(split) for split in parts])))


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
    limits = group["clip"] * _foreach_norm(params).clamp(min=group["clip_floor"])  # [P]
    excess = (_foreach_norm(grads) / limits).clamp(min=1)  # [P]
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


def _check_options(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    tiny = torch.finfo(torch.float32).tiny
    lr = 0.0 if isinstance(group["lr"], Tensor) else group["lr"]  # it may lie on a GPU: not read
    decay = "Choose a decay from 0 up to, but not including, 1"
    for name, value, possible, remedy in (
        ("lr", lr, 0 <= lr < math.inf, "Choose a finite learning rate of at least 0"),
        ("betas[0]", beta1, 0 <= beta1 < 1, decay),
        ("betas[1]", beta2, 0 <= beta2 < 1, decay),
        ("eps", group["eps"], tiny <= group["eps"] < math.inf, f"Below {tiny:.2g}, float32 gives 0 / 0: try 1e-20"),
        ("clip", group["clip"], group["clip"] > 0, "Choose a positive share, or math.inf for no clipping"),
        ("clip_floor", group["clip_floor"], 0 < group["clip_floor"] < math.inf, "Choose a small positive norm"),
        ("warmup", group["warmup"], 0 <= group["warmup"] < math.inf, "Choose a number of updates, 0 for none"),
    ):
        if not possible:
            raise ValueError(f"LaProp got {name}={value!r}. {remedy}.")
