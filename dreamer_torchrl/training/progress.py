"""How far a run is, how fast it goes, and where the time goes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from statistics import fmean, variance

from torchrl import timeit

from dreamer_torchrl.config.schema import Settings

RECENT = 10  # episodes whose mean return is shown
COMPARED = 50  # newest episodes, whose mean return is compared with chance
CHANCE, PREFILLED = 20, 100  # first episodes whose return counts as chance; as many at most before the first update
CHANCE_UPDATES = 1000  # after which no episode counts as one by chance: small ones, as the learning rate rises
PARTS = ("collector", "replay", "learner", "evaluation")  # whose time is measured; they do not overlap


@dataclass
class Progress:
    steps: int = 0
    updates: int = 0
    skipped: int = 0  # updates that were not finite
    episodes: int = 0
    environment_failures: int = 0
    offline: int = 0  # updates of the offline phase
    credit: float = 0.0  # updates that collected steps have earned and that are not done yet
    evaluated: int = 0  # position of the last evaluation
    evaluation: float | None = None  # its mean return
    best_evaluation: float | None = None  # the highest of all evaluations
    best: float | None = None  # mean return over RECENT episodes
    seconds: float = 0.0  # of training until the last save, over all processes of the run
    recent: list[float] = field(default_factory=list)  # returns of the newest episodes
    chance: list[float] = field(default_factory=list)  # returns of the first episodes, of a policy close to random

    @property
    def position(self) -> int:
        """How far the run is, in all that is recorded and saved: updates of the offline phase and environment steps."""
        return self.offline + self.steps

    def add_episode(self, total_reward: float) -> None:
        still_random = self.updates <= CHANCE_UPDATES and len(self.chance) < (CHANCE if self.updates else PREFILLED)
        if still_random and len(self.chance) == self.episodes:
            self.chance.append(total_reward)
        self.episodes += 1
        self.recent = [*self.recent, total_reward][-COMPARED:]
        if len(self.recent) >= RECENT:
            mean = fmean(self.recent[-RECENT:])
            self.best = mean if self.best is None else max(mean, self.best)

    def compared(self) -> dict[str, float]:
        """Mean returns at the start and lately, and their difference in standard errors, where episodes suffice."""
        later = self.recent[max(0, len(self.recent) + len(self.chance) - self.episodes) :]
        if len(self.chance) < 4 or len(later) < RECENT:
            return {}
        error = math.sqrt(sum(variance(returns) / len(returns) for returns in (self.chance, later)))
        chance, recent = fmean(self.chance), fmean(later)
        above = (recent - chance) / max(error, 1e-9)
        return {"return/chance": chance, "return/recent": recent, "return/above_chance": above}

    def finished(self, settings: Settings) -> bool:
        """Whether all steps are done, or the last evaluation reached the return that was asked for."""
        reached, wanted = self.evaluation, settings.eval.stop_at
        return self.position >= settings.end or (None not in (reached, wanted) and reached >= wanted)

    def evaluation_is_due(self, settings: Settings) -> bool:
        """At the first step at or after each multiple of ``eval.every`` with updates before it, and at the ends.

        In an offline phase updates count as steps.
        """
        every, now = settings.eval.every, self.position
        at_end = now >= settings.end or now == settings.updates_before
        before = max(self.evaluated, settings.first_update)
        return every > 0 and (at_end or now // every > before // every) and self.evaluated < now


class Clock:
    """Seconds of training over all processes of a run, and rates and shares of the time since the last record."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.saved_at = self.logged_at = time.monotonic()
        self._before = (progress.steps, progress.updates)
        timeit.erase()

    @property
    def elapsed(self) -> float:
        return self.progress.seconds + time.monotonic() - self.saved_at

    def note_saved(self) -> None:
        self.progress.seconds = self.elapsed
        self.saved_at = time.monotonic()

    def rates(self, settings: Settings) -> dict[str, float]:
        progress, now = self.progress, time.monotonic()
        seconds = max(now - self.logged_at, 1e-9)
        steps, updates = self._before
        rate = (progress.steps - steps) / seconds
        self.logged_at, self._before = now, (progress.steps, progress.updates)
        left = max(settings.end - progress.position, 0)
        rates = {"rate/steps_per_second": rate, "rate/updates_per_second": (progress.updates - updates) / seconds}
        rates |= {"rate/frames_per_second": rate * settings.env.frames_per_step}
        rates |= {"time/elapsed": self.elapsed, "time/left": left * self.elapsed / max(progress.position, 1)}
        measured = timeit.todict(percall=False)
        timeit.erase()
        shares = {f"share/{part}": measured.get(part, 0.0) / seconds for part in PARTS}
        return rates | shares | {"share/other": max(0.0, 1 - sum(shares.values()))}
