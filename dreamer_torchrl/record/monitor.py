"""The usual failures of a training, found in what it records: the same for the console of a run and for its report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

WINDOW = 5  # newest records, all of which a failure must last: with the default log.every 25 seconds
LEARNED = 0.2  # learning rate times updates after the warm-up: every healthy head was well below its limit by then
CHANCE = 2.0  # standard errors: random returns are above it in one of 40 cases
TRIED = 0.6  # share of total_steps: the preset pendulum leaves chance after a third, memory after a bit more than half
FLOOR = 1.001  # times the free nats: CartPole never came below 1.0013; deterministic worlds do, hence only at chance
RANDOMNESS = 0.01  # of the entropy's range: solved tasks end between 0.02 and 0.2
BASE_RATE = 1.25  # times its error: where the end cannot be foreseen, a sound head is at 1.0 with some noise
CONTINUE_ERROR = 1e-3  # squared: half a step in 16 of imagination; sound heads are below where nothing terminates
EPISODES = 10  # in the replay: fewer, and one lucky or unlucky episode is much of what is learned from
SEQUENCES = 4  # in an episode: with more, most of it is out of reach of the gradients of a sequence
ENVIRONMENTS = 0.25  # share of acting in the whole time: with less of it there is little to win
LEARNER = 0.1  # share of the learner in the time of acting and learning: twice the updates cost a tenth more time


class Finding(NamedTuple):
    name: str
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


class Evidence:
    """Settings of a run and its newest records after the first update; what they lack is NaN and meets no criterion."""

    def __init__(self, values: Mapping[str, Any], records: Iterable[Mapping[str, Any]]):
        self.values, self.replay, self.learner = values, values["replay"], values["learner"]
        self.records = [each for each in records if each.get("count/updates")][-WINDOW:]
        self.batch = self.replay["batch"] * self.replay["length"]  # steps
        self.first_update = max(values["prefill"], self.batch)

    def all(self, key: str) -> list[float]:
        return [each[key] for each in self.records if each.get(key) is not None] or [math.nan]

    def mean(self, key: str) -> float:
        return fmean(self.all(key))

    def last(self, key: str) -> float:
        return self.all(key)[-1]

    @property
    def steps(self) -> float:
        """Environment steps: records count the updates of an offline phase before them."""
        return self.last("step") - (self.values["offline_updates"] if self.values.get("offline") else 0)

    @property
    def full(self) -> bool:
        return len(self.records) == WINDOW

    @property
    def trained(self) -> bool:
        """Whether all records come after so many updates that heads must have learned something."""
        rate = self.learner["learning_rate"]
        return self.full and rate > 0 and self.all("count/updates")[0] >= self.learner["warmup"] + LEARNED / rate

    @property
    def at_chance(self) -> bool:
        return self.trained and self.last("return/above_chance") < CHANCE

    @property
    def tried(self) -> bool:
        return self.at_chance and self.steps >= TRIED * self.values["total_steps"]

    @property
    def episode_length(self) -> float:
        return self.steps / (self.last("count/episodes") or math.nan)


def reward_head(run: Evidence) -> str | None:
    """Do rewards follow from what is observed? Try a larger learner.learning_rate, or learner.reward_scale."""
    error, variance = run.mean("train/reward_error"), run.mean("train/reward_variance")
    told = f"its error is {math.sqrt(error):.3g}, the standard deviation of the rewards {math.sqrt(variance):.3g}"
    return f"The reward head has learned nothing: {told}." if run.trained and error > variance > 0 else None


def free_nats(run: Evidence) -> str | None:
    """Fine where the world is deterministic and predicted; else lower learner.free_nats, or look at observations."""
    loss, floor = max(run.all("train/loss_dynamics")), run.learner["free_nats"] * run.learner["dynamics_scale"]
    told = f"The KL stays below learner.free_nats={run.learner['free_nats']:g}, with returns at chance ({chance(run)})."
    return told if run.at_chance and 0 < loss <= FLOOR * floor else None


def entropy(run: Evidence) -> str | None:
    """Try a larger learner.entropy_scale, a smaller learner.learning_rate, or some prefill."""
    randomness = max(run.all("train/randomness"))
    told = f"The policy's entropy fell to {randomness:.1%} of its range, with returns at chance ({chance(run)})."
    return told if run.at_chance and randomness < RANDOMNESS else None


def continue_head(run: Evidence) -> str | None:
    """`terminated` may only be true where the task ends, not at a time limit; see learner.continue_scale."""
    error, variance = run.mean("train/continue_error"), run.mean("train/continue_variance")
    told = f"its error is {math.sqrt(error):.3g}, that of the base rate {math.sqrt(variance):.3g}"
    wrong = run.trained and error > BASE_RATE * variance + CONTINUE_ERROR
    return f"The continue head is wrong: {told}." if wrong else None


def replay_capacity(run: Evidence) -> str | None:
    """Give a larger replay.capacity; with replay.storage=disk it needs no memory."""
    capacity, length = run.replay["capacity"], run.episode_length
    told = f"The replay holds {capacity:,} steps: {capacity / length:.1f} episodes of {length:,.0f} steps."
    return told if run.full and capacity < min(EPISODES * length, run.values["total_steps"]) else None


def sequence_length(run: Evidence) -> str | None:
    """Then give a larger replay.length."""
    length, whole = run.replay["length"], run.episode_length
    told = f"Gradients reach back {length} steps, episodes have {whole:,.0f}: too short if memory must last longer."
    return told if run.tried and whole > SEQUENCES * length else None


def few_updates(run: Evidence) -> str | None:
    """The run can continue with either."""
    left = max(0, run.values["total_steps"] - max(run.steps, run.first_update))
    done, warmup = run.last("count/updates"), run.learner["warmup"]
    updates = done + left * run.values["train_ratio"] / run.batch
    fits = f"train_ratio={math.ceil((warmup - done) / left * run.batch)}, or " if left else ""
    told = f"The whole run has {updates:,.0f} updates, and the learning rate rises for {warmup:,}"
    return f"{told}: give {fits}more total_steps." if updates < warmup else None


def idle_learner(run: Evidence) -> str | None:
    """The run can continue with it; slow environments can run in env.workers=processes."""
    learner, collector = run.mean("share/learner"), run.mean("share/collector")
    ratio = run.values["train_ratio"] * collector / max(learner, 1e-3)
    told = f"Updates take {learner:.0%} of the time, the environments {collector:.0%}"
    idle = run.full and collector > ENVIRONMENTS and learner < LEARNER * (learner + collector)
    return f"{told}: with train_ratio={ratio:.3g} both would take as long." if idle else None


def at_chance(run: Evidence) -> str | None:
    """`doctor --env` checks the environment; make a rare reward denser, or the task shorter."""
    return f"Returns are at chance after {run.steps:,} steps: {chance(run)}." if run.tried else None


def chance(run: Evidence) -> str:
    return f"{run.last('return/recent'):.4g}, in the first episodes {run.last('return/chance'):.4g}"


CHECKS = (reward_head, free_nats, entropy, continue_head, replay_capacity, sequence_length)
CHECKS += (few_updates, idle_learner, at_chance)
"""What is wrong with a run, or None, by the name of the failure; the docstring says what to do."""


def findings(values: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """What is wrong at the end of ``records``, lines of metrics.jsonl, in a run with the settings ``values``."""
    run = Evidence(values, records)
    told = [(check, check(run)) for check in CHECKS] if run.records else []
    return [Finding(check.__name__, text, check.__doc__) for check, text in told if text]


class Monitor:
    """Findings of a run while it goes on, each kind once."""

    def __init__(self, values: Mapping[str, Any]):
        self.values, self.said = values, set[str]()
        self._records: list[Mapping[str, Any]] = []

    def new(self, record: Mapping[str, Any]) -> list[Finding]:
        self._records = [*self._records, record][-WINDOW:]
        found = [each for each in findings(self.values, self._records) if each.name not in self.said]
        self.said |= {each.name for each in found}
        return found
