"""Replay a recording of the official Dreamer V1 or V2 code and compare number for number.

Each stage of an update is compared as it is computed, with the parameters of that moment. Then the recorded gradients
take the place of ours: what follows is that of the recording, to the rounding of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from comparison import Row, compare
from family_actor import Acting, variants
from family_checks import FORWARD, GRADIENT, UPDATE, StageChecks
from family_recording import Arrays, FamilyRecording
from family_v1 import FirstRecording
from family_v2 import SecondRecording
from recording import Recording
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from dreamer_torchrl.interop.official_names import Link
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import LossStage, SeparateLearner
from dreamer_torchrl.objectives.value import SlowUpdate

Check = Callable[[str, TensorDictBase, TensorDictBase, TensorDictBase], Iterable[Row]]
"""Of a group: what its loss gave, the data that it took, and the data that it gave."""


class ReplayedLearner(SeparateLearner):
    """A learner whose stages are watched, and whose gradients are exchanged for recorded ones."""

    def replay(
        self, batch: TensorDictBase, noise: dict[str, TensorDictBase], check: Check, recorded: dict[str, Tensor]
    ) -> list[Row]:
        """One update; the rows of its stages. The noise is that of the ``task`` and of the ``explorer``."""
        self.noise, self.check, self.recorded = noise, check, recorded
        self.rows: list[Row] = []
        self.own_gradients: dict[str, Tensor] = {}
        self.zero_grad()
        self.descend(batch, noise["task"])
        self.slow_update.step()
        for term in self.loss.extra_modules:
            term.slow_update.step()
        return self.rows

    def stages(self) -> list[tuple[str, LossStage]]:
        return [(group, partial(self._watched, group, loss)) for group, loss in super().stages()]

    def _watched(self, group: str, loss: LossStage, data: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        if group.endswith("explorer"):
            data = data.copy().set("noise", self.noise["explorer"][:, 1:])
        before = [buffer.clone() for buffer in self.normalizers]
        losses, after = loss(data)
        with torch.no_grad():
            for now, then in zip(self.normalizers, before, strict=True):
                now.copy_(then)  # the check computes rewards once more
            self.rows += self.check(group, losses, data, after)
        return losses, after

    def differentiate(self, group: str, losses: TensorDictBase) -> Tensor:
        norms = super().differentiate(group, losses)
        for name in self.groups[group]:
            self.own_gradients[name] = self.trained[name].grad
            self.trained[name].grad = self.recorded[name].clone()
        return norms


class Replay:
    """A recording beside a learner of ours."""

    def __init__(self, recording: FamilyRecording, **options: Any):
        self.recording, self.agent = recording, recording.agent()
        self.learner = recording.learner(ReplayedLearner, self.agent, **{"compile": False} | options)
        extra = list(self.learner.loss.extra_modules)
        self.explorer: Plan2Explore | None = extra[0] if extra else None
        self.links = recording.names(self.agent, self.explorer).links()
        self.names = {id(parameter): name for name, parameter in self.learner.trained.items()}

    def load(self, part: str) -> None:
        """Set all parameters, target networks, counters and normalizers to recorded ones."""
        arrays = self.recording.parts(part)
        with torch.no_grad():
            for link in self.links:
                link.parameter.copy_(link.from_official(arrays[link.name]))
            for link, slow in self.targets():
                slow.copy_(link.from_official(arrays[link.name]))
        for prefix, update in self.slow_updates():
            update.updates.fill_(int(arrays[f"{prefix}_state/updates"]))
        for name, normalizer in self.normalizers():
            normalizer.magnitude.fill_(float(arrays[name]))

    def slow_updates(self) -> Iterator[tuple[str, SlowUpdate]]:
        if self.learner.target_every:
            yield "", self.learner.slow_update
            if self.explorer is not None:
                yield "expl_", self.explorer.slow_update

    def targets(self) -> Iterator[tuple[Link, Tensor]]:
        """Target networks, under the names and layouts of their critics."""
        for _, update in self.slow_updates():
            slow = dict(zip(map(id, update.fast), update.slow.values(), strict=True))
            for link in self.links:
                if id(link.parameter) in slow:
                    name = link.name.replace("critic", "target_critic")
                    yield Link(name, link.parameter, link.axes, link.order, link.along), slow[id(link.parameter)]

    def normalizers(self) -> Iterator[tuple[str, nn.Module]]:
        if self.recording.first:
            return
        yield "_state/reward_norm_mag", self.learner.actor_loss.normalizer
        if self.explorer is not None:
            yield "expl__state/reward_norm_mag", self.explorer.actor_loss.normalizer
            yield "_state/intr_rewnorm_mag", self.explorer.intrinsic
            yield "_state/extr_rewnorm_mag", self.explorer.extrinsic

    def update(self, number: int) -> Iterator[Row]:
        """Compare one update."""
        recording, learner = self.recording, self.learner
        step = recording.load(f"step{number}")
        self.load(f"params{number - 1}")
        batch = recording.batch(self.agent, recording.load("step1") if number == 2 else None)
        noise = {"task": recording.noise(learner, step, "task/")}
        if self.explorer is not None:
            noise["explorer"] = recording.noise(learner, step, "expl/")
        arrays = recording.parts(f"grads{number}")
        recorded = {self.names[id(link.parameter)]: link.from_official(arrays[link.name]) for link in self.links}
        yield from learner.replay(batch, noise, StageChecks(recording, learner, step), recorded)
        for link in self.links:
            name = self.names[id(link.parameter)]
            yield compare(f"grad {link.name}", learner.own_gradients[name], recorded[name], GRADIENT)
        yield from self.parameters(recording.parts(f"params{number}"))

    def parameters(self, arrays: Arrays) -> Iterator[Row]:
        pairs = [*((link, link.parameter) for link in self.links), *self.targets()]
        for link, ours in pairs:
            yield compare(f"param {link.name}", ours, link.from_official(arrays[link.name]), UPDATE)
        for prefix, update in self.slow_updates():
            yield compare(f"{prefix}updates", update.updates, arrays[f"{prefix}_state/updates"], 0.0)
        for name, normalizer in self.normalizers():
            yield compare(name, normalizer.magnitude, arrays[name], FORWARD)


def family_of(recording: Recording) -> FamilyRecording | None:
    """The recording as one of V1 or V2, if it is one."""
    kinds = {"deter_size": FirstRecording, "rssm": SecondRecording}
    found = [kind for key, kind in kinds.items() if key in recording.config.get("config", {})]
    return found[0](recording.folder, recording.case) if found else None


def verify_family(recording: FamilyRecording, **options: Any) -> list[Row]:
    """All comparisons of a recording; ``options`` are arguments of its learner, such as ``native``."""
    replay, rows = Replay(recording, **options), []
    for number in (1, 2):
        for row in replay.update(number):
            rows.append(Row(f"{number} {row.quantity}", row.absolute, row.relative, row.tolerance))
    replay.load("params0")
    rows += Acting(recording, replay.agent, replay.explorer).rows()
    if not recording.first:
        scale = {"reward_momentum": 1.0, "reward_factor": 1.0}
        unscaled = Replay(recording, gradient_mix=0.5, **scale, **options)
        unscaled.load("params2")
        unscaled.learner.actor_loss.normalizer.magnitude.fill_(1.0)
        rows += variants(recording, unscaled.learner, unscaled.links)
    return rows
