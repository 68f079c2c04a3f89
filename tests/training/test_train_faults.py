"""What breaks while a run trains, and what is broken when it comes back."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreamer_torchrl import train
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, Saved
from dreamer_torchrl.config.compose import load as configured
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.loggers import JsonLinesLogger
from dreamer_torchrl.record.metrics import Metrics
from dreamer_torchrl.training.late import Diverged
from dreamer_torchrl.training.loop import Training
from dreamer_torchrl.training.signals import StopSignals
from tests.checkpoint.checkpoint_examples import flip_a_bit, mounted
from tests.training.training_examples import assert_same_run, lines, trained, words


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of step 30 and 40."""
    run = trained(tmp_path_factory.mktemp("saved") / "run", "total_steps=30", "eval.every=0")
    return trained(run, "total_steps=40", "eval.every=0")


@pytest.fixture
def run(twice_saved: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return shutil.copytree(twice_saved, tmp_path / "run")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints" / "000000000040"
    flip_a_bit(newest / "learner.pt")
    trained(run, "total_steps=42", "eval.every=0")
    printed = capsys.readouterr().out
    assert f"{newest} is damaged: learner.pt" in printed
    assert "Resumed at step 30" in printed
    assert Checkpoints(run / "checkpoints").load().step == 42


def test_if_all_are_damaged_nothing_is_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in Checkpoints(run / "checkpoints").names():
        flip_a_bit(run / "checkpoints" / name / "learner.pt")
    before = content(run)
    assert train.main(words(run, "total_steps=42", "eval.every=0")) == 3
    assert "No checkpoint can be used, none was changed." in capsys.readouterr().out
    assert content(run) == before


def content(folder: Path) -> dict[str, str]:
    """Every file with its checksum."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Poisoned(Training):
    """Has NaN in its reward head after it was restored; ``always``, or the first time only."""

    always = False

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.restored = self.learner.state_dict()
        if self.always or not self.went_back:
            with torch.no_grad():
                next(self.learner.agent.reward.parameters()).fill_(torch.nan)
        self.before = {name: value.clone() for name, value in self.learner.agent.state_dict().items()}

    def go_back(self) -> None:
        now = self.learner.agent.state_dict()
        assert all(torch.equal(value.nan_to_num(7), now[name].nan_to_num(7)) for name, value in self.before.items())
        super().go_back()


def go_on(kind: type[Training], run: Path, steps: int) -> Training:
    """Continue in this process with a training of this kind."""
    configuration = configured(words(run, f"total_steps={steps}", "eval.every=0"))
    console = Console(steps)
    training = kind(configuration.settings, run, console)
    metrics = Metrics([console, JsonLinesLogger(run / "metrics.jsonl")])
    saved = training.checkpoints.load()
    try:
        with StopSignals(console.note) as stop:
            training.run(metrics, saved, stop)
    finally:
        metrics.close()
        training.close()
    return training


class ReadLate(Poisoned):
    """Reads how updates ended while the next one is under way, as on a GPU."""

    late = 1


@pytest.mark.parametrize("kind", [Poisoned, ReadLate])
def test_updates_that_are_not_finite_are_skipped_and_the_last_checkpoint_heals(
    kind: type[Training], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is named and changes no weight; after five in a row the run goes back, and on to its end."""
    training = go_on(kind, run, 90)
    printed = capsys.readouterr().out
    skipped = [line for line in printed.splitlines() if "is skipped" in line]
    assert len(skipped) == 5 and all("loss_reward" in line and line.endswith("is not finite.") for line in skipped)
    assert "5 updates in a row were not finite: back to" in printed and "000000000040, this once." in printed
    assert training.progress.steps == 90 and training.skipped_in_a_row == 0 and not training.under_way
    saved = Checkpoints(run / "checkpoints").load()
    assert saved.step == 90
    assert all(value.isfinite().all() for value in saved.parts["learner"]["agent"].values())
    steps = [line["step"] for line in lines(run)]
    assert steps == sorted(steps)


class AlwaysPoisoned(Poisoned):
    always = True


class Robbed(Poisoned):
    """Has lost its checkpoints when it wants to go back."""

    def go_back(self) -> None:
        for name in self.checkpoints.names():
            (self.run_dir / "checkpoints" / name / "learner.pt").unlink(missing_ok=True)
        super().go_back()


@pytest.mark.parametrize("kind", [AlwaysPoisoned, Robbed])
def test_a_run_that_cannot_go_back_stops_with_its_batch(kind: type[Training], run: Path) -> None:
    """It went back before, or there is nothing to go back to; the batch can be read without a pickle."""
    before = content(run / "checkpoints")
    with pytest.raises(Diverged, match=r"5 updates in a row were not finite \(.*loss_reward.*\)"):
        go_on(kind, run, 120)
    (dump,) = (run / "faults").iterdir()
    batch = torch.load(dump, weights_only=True)
    assert batch["reward"].shape == (2, 9, 1) and batch["observation"].shape == (2, 9, 4)
    assert kind is Robbed or content(run / "checkpoints") == before


def fill(folder: Path, but: int) -> Path:
    """A file that leaves so many bytes of the disk; its place."""
    ballast = folder / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - but)
    return ballast


@pytest.mark.slow
def test_a_replay_on_disk_takes_the_room_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not that of its capacity; and what the last process left of it is no reason to refuse the next."""
    run, options = tmp_path / "disk" / "run", ("replay.storage=disk", "replay.capacity=1000000", "eval.every=0")
    run.parent.mkdir()
    with mounted(run.parent, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        command = [sys.executable, "-m", "dreamer_torchrl.train"]  # a process that ends, and lets go of its files
        subprocess.run([*command, *words(run, *options, "total_steps=4000", "train_ratio=0")], check=True)
        assert sum(file.stat().st_size for file in (run / "replay-scratch").rglob("*")) > 600_000
        fill(run.parent, but=1_350_000)  # enough for a checkpoint only if the last process's file goes
        trained(run, *options, "total_steps=4001", "train_ratio=0")
        assert "Resumed at step 4000" in capsys.readouterr().out.replace(",", "")


def test_a_disk_that_is_full_before_a_run_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = run.parent / "disk"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        shutil.copytree(run, place / "run")
        fill(place, but=4096)
        assert train.main(words(place / "run", "total_steps=42", "eval.every=0")) == 1
    assert f"{place / 'run'} cannot be written: No space left on device." in capsys.readouterr().err


def test_a_full_disk_stops_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run warns with the bytes and ends; once there is room, it ends as if nothing had been."""
    run, options = tmp_path / "disk" / "run", ("eval.every=0", "total_steps=60")
    run.parent.mkdir()
    with mounted(run.parent, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        trained(run, "eval.every=0", "total_steps=30")
        ballast = fill(run.parent, but=65_536)
        assert train.main(words(run, *options)) == 1
        printed = capsys.readouterr().out
        assert "The checkpoint of step 60 was not written: No space left on device. It needs " in printed
        assert "Step 60 is not saved. Make room, then continue" in printed
        assert Checkpoints(run / "checkpoints").load().step == 30
        ballast.unlink()
        trained(run, *options)
        assert_same_run(run, trained(tmp_path / "twin", *options))
