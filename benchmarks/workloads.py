"""The three workloads of the learner benchmarks: specs and official sizes."""

from dataclasses import dataclass

import torch
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded

from dreamer_torchrl import Size

CONTEXT = 1  # steps of replay context in front of the trained ones
HORIZON = 15  # imagined steps


@dataclass(frozen=True)
class Workload:
    """Observation spec, action spec and agent size.

    `parameters` is what the official agent trains there (slow critic left out): an agent of ours with another count
    is not the one that was meant to be timed.
    """

    name: str
    size_name: str
    observation: str
    image: bool
    parameters: int

    @property
    def size(self) -> Size:
        return Size.named(self.size_name)

    @property
    def observation_spec(self) -> Composite:
        pixels = Bounded(0, 255, (64, 64, 3), dtype=torch.uint8)
        return Composite({self.observation: pixels if self.image else Unbounded((24,))})

    @property
    def action_spec(self) -> TensorSpec:
        return OneHot(6) if self.image else Bounded(-1, 1, (6,))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("proprio_size1m", "size1m", "observation", image=False, parameters=640_867),
        Workload("vision_size1m", "size1m", "pixels", image=True, parameters=686_456),
        Workload("vision_size12m", "size12m", "pixels", image=True, parameters=10_492_616),
    )
}
