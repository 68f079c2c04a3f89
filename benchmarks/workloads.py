"""The workloads of the learner benchmarks: specs and official sizes."""

from dataclasses import dataclass

import torch
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded

from dreamer_torchrl import Learner, Size

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
    batch: int = 16  # sequences
    length: int = 64  # trained steps

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


@dataclass(frozen=True)
class FamilyWorkload:
    """Another algorithm of the family, as the training command builds it from ``overrides``, with 6 actions.

    `parameters` is what it trains, also in the peer named by ``against``: sheeprl's, or DreamerV3 with its decoder.
    """

    name: str
    overrides: tuple[str, ...]
    actions: TensorSpec
    parameters: int
    batch: int = 16
    length: int = 64
    against: str = "sheeprl"

    def learner(self, *more: str) -> Learner:
        """The learner of these and ``more`` overrides."""
        from dreamer_torchrl.checkpoint.specs import Specs  # these need Hydra, which is not on every GPU machine
        from dreamer_torchrl.config.compose import load
        from dreamer_torchrl.training.build import agent_of, make_learner

        settings = load([*self.overrides, *more]).settings
        pixels = Bounded(0, 255, (64, 64, 3), dtype=torch.uint8)
        specs = Specs(Composite(pixels=pixels), Composite(action=self.actions), {})
        return make_learner(settings, agent_of(settings, specs))


DMC = Bounded(-1, 1, (6,))

FAMILY = {
    workload.name: workload
    for workload in (
        FamilyWorkload("dreamer_v1", ("experiment=dreamer_v1_dmc",), DMC, 6_288_833, 50, 50),
        FamilyWorkload("dreamer_v2", ("experiment=dreamer_v2_dmc",), DMC, 15_604_385, 16, 50),
        FamilyWorkload(
            *("r2", ("experiment=official", "size=size1m", "dtype=float32", "representation=r2"), OneHot(6), 769_701),
            against="decoder",
        ),
    )
}
