"""The update as a graph: what is captured repeats all that an update does, and nothing of what is learned moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from dreamer_torchrl import Hyperparameters, Learner, build_agent
from dreamer_torchrl.agents.capturing import StaticBatch
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.learners import adam
from dreamer_torchrl.learners.cuda_graph import CapturedUpdate, Outcome
from dreamer_torchrl.learners.laprop import LaProp
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.training.build import make_learner
from tests.learners.tape import NoLiterals, OnDevice, TapeGraphs, tensors_in
from tests.learners.test_learner import DONE, SEEN
from tests.objectives.examples import TINY
from tests.training.training_examples import differences

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def learner_for(
    dtype: torch.dtype = torch.float32, device: str = "cpu", compile: bool = False, **options: Any
) -> Learner:
    """One whose weights are the same at each call; on the CPU without images, which take other ways there."""
    torch.manual_seed(0)
    seen = Composite(goal=SEEN["goal"], hook=SEEN["hook"]) if device == "cpu" else SEEN
    agent = build_agent(seen, DONE, TINY, dtype=dtype).to(device)
    h = Hyperparameters(**{"imagination_length": 2, "warmup": 2, "learning_rate": 1e-2, **options})
    return Learner(agent, h, compile=compile, native=False)  # as on a GPU


def batches_for(learner: Learner, count: int, length: int = 3) -> list[TensorDict]:
    return [example_batch(learner.agent, batch=2, length=length, seed=seed) for seed in range(count)]


def learned(learner: Learner) -> list[Tensor]:
    """All tensors that an update changes, as they are."""
    slots = [slot for state in learner.optimizer.state.values() for slot in state.values()]
    slow = learner.value_loss.target_value_params.data.values(True, True)
    return [*learner.agent.parameters(), *slots, *slow, *learner.actor_loss.normalizer.buffers()]


def plainly(outcome: Outcome) -> list[Any]:
    """As containers that compare with ``==``."""
    return [outcome.metrics.to_dict(), outcome.latents.to_dict(), outcome.gradient_norms]


# On a list instead of a GPU


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": torch.bfloat16}, {"slow_target": True, "context": 0, "discount_in_continue": False}],
    ids=["default", "bfloat16", "other"],
)
def test_replays_are_updates_bit_for_bit(options: dict[str, Any]) -> None:
    """Also the first one, though the capture itself runs updates: nothing of them is left."""
    plain, learner = learner_for(**options), learner_for(**options)
    batches = batches_for(learner, 3)
    captured = CapturedUpdate(learner, batches[2], TapeGraphs())
    assert differences(learner.state_dict(), plain.state_dict()) == []
    for batch in batches:
        assert differences(plainly(captured(batch)), plainly(plain.step(batch))) == []
        assert differences(learner.state_dict(), plain.state_dict()) == []


def test_a_capture_goes_on_from_a_loaded_state() -> None:
    """Into the tensors that the graph knows: no second capture."""
    kept, learner = learner_for(), learner_for()
    batches = batches_for(learner, 3)
    captured = CapturedUpdate(learner, batches[0], TapeGraphs())
    captured(batches[0])
    for batch in batches[:2]:
        kept.step(batch)
    before = [tensor.data_ptr() for tensor in learned(learner)]
    learner.load_state_dict(copy.deepcopy(kept.state_dict()))
    assert [tensor.data_ptr() for tensor in learned(learner)] == before
    assert captured.fits(learner, batches[2])
    assert differences(plainly(captured(batches[2])), plainly(kept.step(batches[2]))) == []
    assert differences(learner.state_dict(), kept.state_dict()) == []


def test_a_skipped_update_is_skipped_in_a_replay_too() -> None:
    learner = learner_for(warmup=0)
    good, bad = batches_for(learner, 2)
    bad["hook", "position"][0, 1] = torch.inf
    captured = CapturedUpdate(learner, good, TapeGraphs())
    before = [tensor.clone() for tensor in learned(learner)]
    assert not captured(bad).metrics["finite"]
    assert differences(learned(learner), before) == []
    assert captured(good).metrics["finite"]
    assert differences(learned(learner), before) != []


def test_the_callers_batch_and_the_staging_memory_may_be_changed_at_once() -> None:
    learner = learner_for()
    first, second = batches_for(learner, 2)
    graphs = TapeGraphs()
    static = StaticBatch(first, torch.device("cpu"), graphs)
    places = [value.data_ptr() for value in static.steps.values(True, True)]
    for batch in (first, second, first):
        static.fill(batch)
        assert (static.steps == batch).all()
        assert not {value.data_ptr() for value in batch.values(True, True)} & set(places)
    assert [value.data_ptr() for value in static.steps.values(True, True)] == places
    assert (len(graphs.staged), static.copied.waited) == (len(list(batch.keys(True, True))), 2)


def test_a_capture_that_fails_changes_nothing() -> None:
    learner = learner_for()
    (batch,) = batches_for(learner, 1)
    before = copy.deepcopy(learner.state_dict())

    class NoMemory(TapeGraphs):
        def record(self, body: Callable[[], Any], generator: torch.Generator) -> tuple[Callable[[], None], Any]:
            body()
            parameter = next(learner.agent.parameters())
            parameter.grad = torch.ones_like(parameter)  # as a step leaves them that fails on the way
            raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        CapturedUpdate(learner, batch, NoMemory())
    assert differences(learner.state_dict(), before) == []
    assert all(parameter.grad is None for parameter in learner.agent.parameters())


def test_a_learner_that_cannot_be_captured_learns_all_the_same() -> None:
    """It says so, once, and does not try again."""
    plain, learner = learner_for(), learner_for()
    attempts = []

    class Broken(TapeGraphs):
        def record(self, body: Callable[[], Any], generator: torch.Generator) -> tuple[Callable[[], None], Any]:
            attempts.append(body())
            raise RuntimeError("operation not permitted when stream is capturing")

    learner.graphs, learner.cuda_graph = Broken(), True
    batches = batches_for(learner, 3)
    with pytest.warns(UserWarning, match="no CUDA graph can hold them: operation not permitted"):
        outcomes = [learner.update(batches[0])]
    outcomes += [learner.update(batch) for batch in batches[1:]]
    assert len(attempts) == 1
    for batch, outcome in zip(batches, outcomes, strict=True):
        assert differences(plainly(Outcome(*outcome, None))[:2], plainly(plain.step(batch))[:2]) == []
    with pytest.raises(ValueError, match="takes a GPU"):
        Learner(learner.agent, cuda_graph=True)


def test_a_learner_captures_once_for_each_form_of_batch() -> None:
    plain, learner = learner_for(), learner_for()
    learner.graphs, learner.cuda_graph = TapeGraphs(), True
    graphs = []
    for length in (3, 3, 4, 4):
        (batch,) = batches_for(learner, 1, length)
        found, expected = Outcome(*learner.update(batch), None), plain.step(batch)
        assert differences(plainly(found)[:2], plainly(expected)[:2]) == []
        graphs.append(learner.captured)
    assert graphs[0] is graphs[1] is not graphs[2] is graphs[3]


def test_what_a_graph_cannot_follow_does_not_fit() -> None:
    learner = learner_for()
    (batch,) = batches_for(learner, 1)
    captured = CapturedUpdate(learner, batch, TapeGraphs())
    assert captured.fits(learner, batches_for(learner, 2)[1])
    for other in (batch[:1], batch[:, :-1], batch.clone().update({"reward": batch["reward"].double()})):
        assert not captured.fits(learner, other)
    assert not captured.fits(learner, batch.exclude("belief"))
    assert not captured.fits(learner, batch.clone().set("more", batch["reward"]))
    group = learner.optimizer.param_groups[0]
    group["lr"] /= 2
    assert not captured.fits(learner, batch)  # a number is fixed
    group["lr"] = torch.tensor(1e-3)
    captured = CapturedUpdate(learner, batch, TapeGraphs())
    group["lr"].mul_(0.5)
    assert captured.fits(learner, batch)  # a tensor is followed


def test_the_setting_switches_the_graph_off_and_is_refused_without_a_gpu(tmp_path: Path) -> None:
    def learner_of(word: str) -> Learner:
        settings = load([f"run_dir={tmp_path}", "env=cartpole", "device=cpu", f"cuda_graph={word}"]).settings
        return make_learner(settings, learner_for().agent)

    assert learner_of("false").cuda_graph is learner_of("null").cuda_graph is False
    with pytest.raises(ConfigError, match="cuda_graph=true needs a GPU"):
        learner_of("true")


# On a device that holds no numbers


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner can be built on torch's "meta" device, where there is no number to read and nothing to copy from."""
    seeded = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: seeded())
    monkeypatch.setattr(Tensor, "is_set_to", lambda one, other: False)  # asked by TorchRL when it is built


@pytest.fixture
def learner_nowhere(request: pytest.FixtureRequest, nowhere: None) -> Learner:
    learner = learner_for(device="meta", **request.param)
    learner.optimizer = LaProp(learner.agent.parameters(), capturable=True)
    return learner


@pytest.mark.parametrize(
    "learner_nowhere",
    [{}, {"dtype": torch.bfloat16}, {"slow_target": True, "context": 0}],
    ids=["default", "bfloat16", "other"],
    indirect=True,
)
def test_an_update_stays_on_its_device(learner_nowhere: Learner) -> None:
    """No value read, no shape that depends on one, no tensor on the host: from the noise to the metrics."""
    seer = build_agent(SEEN, DONE, TINY)
    batch = example_batch(seer, batch=2, length=3).to("meta")
    with OnDevice(), NoLiterals():
        outcome = learner_nowhere.step(batch)
    assert {tensor.device.type for tensor in tensors_in(plainly(outcome))} == {"meta"}


def test_an_update_of_separate_losses_stays_on_its_device(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that goes into torch's fused Adam, too, which itself has no form for this device."""
    taken: list[Tensor] = []
    monkeypatch.setattr(adam, "adam", lambda *inputs, **options: taken.extend(tensors_in((inputs, options))))
    seer = build_agent(SEEN, DONE, TINY)
    batch, agent = example_batch(seer, batch=2, length=3).to("meta"), build_agent(SEEN, DONE, TINY).to("meta")
    rates = {"model": 6e-4, "actor": 8e-5, "value": 8e-5}
    learner = SeparateLearner(agent, Hyperparameters(imagination_length=2), compile=False, native=False, rates=rates)
    groups = [{**group, "capturable": True} for group in learner.optimizer.param_groups]
    learner.optimizer = adam.ClippedAdam(groups, capturable=True)
    with OnDevice(), NoLiterals():
        outcome = learner.step(batch)
    assert len(taken) > 50
    assert {tensor.device.type for tensor in [*taken, *tensors_in(plainly(outcome))]} == {"meta"}


# On a GPU


@needs_gpu
@every_dtype
@pytest.mark.parametrize("compile", [False, True], ids=["plain", "compiled"])
def test_a_captured_learner_equals_an_eager_one(
    dtype: torch.dtype, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    plain, learner = (learner_for(dtype, device="cuda", compile=compile) for _ in range(2))
    for batch in batches_for(learner, 4):
        eager = plain.step(batch.to("cuda"))
        metrics, latents = learner.update(batch)
        torch.testing.assert_close(metrics.to_dict(), eager.metrics.to_dict(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(latents.to_dict(), eager.latents.to_dict(), rtol=1e-4, atol=1e-5)
        assert (learner.generator.get_state() == plain.generator.get_state()).all()
