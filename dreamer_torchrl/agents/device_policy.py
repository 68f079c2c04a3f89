"""Acting on a GPU in environments on the host: one graph per step, one copy there and one back."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import exploration_type

from dreamer_torchrl.agents.capturing import CudaGraphs, StaticBatch
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.keys import LATENTS
from dreamer_torchrl.ranges import part


class DevicePolicy(Policy):
    """A `Policy` on a device for data on the host, where what it writes is as well.

    Latents and action come back in one copy. With ``capture`` a step is one graph for each number of environments.
    Where it ``carries`` latents, those of the data are read at the first step only (`forget` begins anew): then every
    step must see the environments of the one before.
    """

    carries = False
    graphs: CudaGraphs | None = None  # on a GPU, after the first step

    def __init__(self, *parts: Any, capture: bool = False):
        super().__init__(*parts)
        self.capture = capture
        self._captured: dict[Any, CapturedStep] = {}
        self.forget()

    def forget(self) -> None:
        self._carried: dict[str, Tensor] = {}  # latents on the device, after the last step

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        seen, device = self.read(tensordict), next(self.actor.parameters()).device
        count = len(seen["is_init"])
        shapes = {"belief": (self.rssm.belief_size,), "state": self.rssm.latent.shape}
        shapes["previous_action"] = (self.actor.space.size,)
        rows = TensorDict({key: torch.zeros(count, *shape) for key, shape in shapes.items()}, batch_size=[count])
        rows.update(seen).update(self._carried if self.carries else {})
        with part("acting"), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            packed, self._carried = self._outcome(rows, device)
            parts = packed.to("cpu", copy=True).split([prod(shape) for shape in shapes.values()], -1)  # waits for it
        belief, state, action = (x.unflatten(-1, shape) for x, shape in zip(parts, shapes.values(), strict=True))
        return self.write(tensordict, belief, state, action)

    def packed(self, rows: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """All that a step on the device gives as one tensor ``[N, D + S*K + A]``, and as latents for the next one."""
        found = [value.float() for value in self.act(rows)]
        return torch.cat([value.flatten(1) for value in found], -1), dict(zip(LATENTS, found, strict=True))

    def _outcome(self, rows: TensorDictBase, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.capture:
            return self.packed(rows.to(device, non_blocking=True))
        form = len(rows), self.actor, exploration_type()
        if form not in self._captured:
            self.graphs = self.graphs or CudaGraphs()
            try:
                self._captured[form] = CapturedStep(self, rows, device, self.graphs)
            except RuntimeError as error:
                self.capture = False
                warnings.warn(f"Acting is slow, since no CUDA graph can hold it: {error}", stacklevel=4)
                return self._outcome(rows, device)
        return self._captured[form](rows)


class CapturedStep:
    """`DevicePolicy.packed` for one number of environments, one actor and one exploration type, as a graph."""

    def __init__(self, policy: DevicePolicy, rows: TensorDictBase, device: torch.device, graphs: CudaGraphs):
        self.batch = StaticBatch(rows, device, graphs)
        before = policy.generator.get_state()
        try:
            self.replay, self.outputs = graphs.record(partial(policy.packed, self.batch.steps), policy.generator)
        finally:
            policy.generator.set_state(before)

    def __call__(self, rows: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """What comes back is overwritten by the next step, which reads latents before."""
        self.batch.fill(rows)
        self.replay()
        return self.outputs
