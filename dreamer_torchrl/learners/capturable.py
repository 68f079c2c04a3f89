"""What this package's optimizers share: a state that is there before the first step and that CUDA graphs can hold."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NORM_PART = 2**17  # numbers of a tensor that are summed up in one go
OWN = ("lr", "capturable", "native")  # options of the optimizer that loads, not of the one that was saved


class CapturableOptimizer(torch.optim.Optimizer):
    """Base of optimizers with momentum ``mu``, second moment ``nu`` and update number ``step`` for each parameter.

    They can call off a step without reading anything back, which a CUDA graph needs.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name, value, possible, remedy in self.checks(self.defaults | param_group):
            if not possible:
                raise ValueError(f"{type(self).__name__} got {name}={value!r}. {remedy}.")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # The state exists before the first step: made inside a captured graph, each replay would set it to zero again.
        for param in group["params"]:
            if param.dtype not in (torch.float32, torch.float64):
                remedy = "Keep parameters in float32 and compute in lower precision, for example under torch.autocast."
                fault = f"a parameter of {param.dtype}: most steps would be rounded away"
                raise ValueError(f"{type(self).__name__} cannot update {fault}. {remedy}")
            self.state[param] = {
                # float32 counts to 2^24, and by then all corrections have long been 1.
                "step": torch.zeros((), dtype=torch.float32, device=param.device if group["capturable"] else "cpu"),
                "mu": torch.zeros_like(param, memory_format=torch.preserve_format),
                "nu": torch.zeros_like(param, memory_format=torch.preserve_format),
            }

    def checks(self, group: dict[str, Any]) -> Iterable[tuple[str, Any, bool, str]]:
        """Name and value of options, whether they are possible, and what to do if not."""
        beta1, beta2 = group["betas"]
        lr = 0.0 if isinstance(group["lr"], Tensor) else group["lr"]  # it may lie on a GPU: not read
        decay = "Choose a decay from 0 up to, but not including, 1"
        return [
            ("lr", lr, 0 <= lr < math.inf, "Choose a finite learning rate of at least 0"),
            ("betas[0]", beta1, 0 <= beta1 < 1, decay),
            ("betas[1]", beta2, 0 <= beta2 < 1, decay),
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into this one, whose tensors, `capturable` and `native` stay for captured graphs."""
        state = {param: self.state[param] for group in self.param_groups for param in group["params"]}
        here = [{name: group[name] for name in OWN if name in group} for group in self.param_groups]
        saved_ids = (i for group in state_dict["param_groups"] for i in group["params"])
        for i, (param, slots) in zip(saved_ids, state.items(), strict=False):  # torch compares the lengths below
            saved = state_dict["state"].get(i, {})
            for name, slot in slots.items():
                if name not in saved or saved[name].shape != slot.shape:
                    found = f"has shape {tuple(saved[name].shape)}" if name in saved else "is missing"
                    fault = f"{name!r} of parameter {i}, of shape {tuple(param.shape)}, {found}"
                    remedy = f"Load the state of a {type(self).__name__} over the same parameters in the same order."
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
            params = [param for param in group["params"] if param.grad is not None]
            capturing = any(param.is_cuda for param in params) and torch.cuda.is_current_stream_capturing()
            if capturing and not group["capturable"]:
                fault = "counts its updates on the CPU, so this CUDA graph would repeat one update number forever"
                name = type(self).__name__
                raise RuntimeError(f"{name} with capturable=False {fault}. Construct it with capturable=True.")
            if params:
                self.update_group(params, group, where)

    @abstractmethod
    def update_group(self, params: list[Tensor], group: dict[str, Any], where: Tensor | None) -> None:
        """Update these of a group's parameters, which have gradients, unless the boolean ``where`` is False."""


def foreach_norm(tensors: list[Tensor]) -> Tensor:
    """Norms of whole tensors, [P]; of large ones in two stages: torch's own is 1e-4 off for two million on a CPU."""
    parts = [x.reshape(-1).split(NORM_PART) if x.numel() > NORM_PART else (x,) for x in tensors]
    norms = torch.stack(torch._foreach_norm([part for split in parts for part in split]))
    if len(norms) == len(tensors):
        return norms
    return torch.stack(torch._foreach_norm(norms.split([len(split) for split in parts])))
