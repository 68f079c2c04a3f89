"""Memory and disk that a replay will need are predicted, and one that does not fit is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.training import memory
from dreamer_torchrl.training.build import make_envs
from dreamer_torchrl.training.memory import free_memory, replay_size


@pytest.fixture(scope="module")
def settings() -> Settings:
    small = ["size.belief=32", "size.units=16", "size.hidden=16"]
    return load([*small, "total_steps=1e15", "replay.capacity=1e15"]).settings


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_replay_that_does_not_fit_is_refused_with_one_that_does(
    settings: Settings, storage: str, tmp_path: Path
) -> None:
    settings = replace(settings, replay=replace(settings.replay, storage=storage))
    envs = make_envs(settings, "training", 1)
    complaint = r"The replay of 1,000,000,000,000,000 steps of [\d,]+ bytes needs [\d.]+ PB of "
    with pytest.raises(ConfigError, match=complaint) as refused:
        replay_size(settings, envs, tmp_path)
    place = f"of disk in {tmp_path}, " if storage == "disk" else "of memory (saves copy 144 of each), "
    assert place in str(refused.value)
    assert "replay.storage" not in str(refused.value)  # no disk has as much either
    capacity = int(str(refused.value).partition("replay.capacity=")[2].rstrip("."))
    fitting = replace(settings, replay=replace(settings.replay, capacity=capacity))
    assert f"for {capacity:,} steps;" in replay_size(fitting, envs, tmp_path)
    per_step = int(replay_size(fitting, envs, tmp_path).split()[1].replace(",", ""))
    free, disk = free_memory(), shutil.disk_usage(tmp_path).free
    needs = ((disk, per_step), (free, 144)) if storage == "disk" else ((free, per_step + 144),)
    assert 0.5 < max(capacity * each / there for there, each in needs) < 1
    short = replay_size(replace(settings, total_steps=50), envs, tmp_path)
    assert "for 50 steps; up to 7.2 KB of memory more in a save." in short  # a short run fills no more than its steps


def test_a_replay_on_the_gpu_must_fit_into_its_memory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a save copies comes to the host."""
    settings = replace(settings, total_steps=1_000_000, replay=replace(settings.replay, storage="cuda"))
    envs = make_envs(settings, "training", 1)
    with pytest.raises(ConfigError, match=r"replay\.storage=cuda needs a GPU, and this run is on cpu: leave it at"):
        replay_size(settings, envs, tmp_path)
    monkeypatch.setattr(memory, "replay_device", lambda settings: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100_000_000, 200_000_000))
    with pytest.raises(ConfigError, match=r"needs [\d.]+ MB of GPU memory, 100.0 MB are free: give replay.capacity="):
        replay_size(settings, envs, tmp_path)
    settings = replace(settings, replay=replace(settings.replay, capacity=100_000))
    assert "MB of GPU memory for 100,000 steps; up to 14.4 MB of memory more" in replay_size(settings, envs, tmp_path)


def test_latents_of_a_replay_on_disk_must_fit_into_memory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save copies them there: all have changed, when it is long after the last one."""
    settings = replace(settings, total_steps=1_000_000, replay=replace(settings.replay, storage="disk"))
    envs = make_envs(settings, "training", 1)
    monkeypatch.setattr(memory, "free_memory", partial(int, 144e6))
    assert "up to 144.0 MB of memory more in a save." in replay_size(settings, envs, tmp_path)
    monkeypatch.setattr(memory, "free_memory", partial(int, 143e6))
    complaint = r"needs 144.0 MB of memory \(saves copy 144 of each\), 143.0 MB are free: give replay.capacity=794444\."
    with pytest.raises(ConfigError, match=complaint):
        replay_size(settings, envs, tmp_path)
    stale = replace(settings, checkpoint=replace(settings.checkpoint, latents="stale"))
    assert replay_size(stale, envs, tmp_path).endswith("a save copies what is new.")


def test_atari_as_in_the_official_benchmark_starts_with_128_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five million frames of 96 x 96 with beliefs of 8192 numbers in bfloat16 and 32 classes, which no save copies."""
    settings = load(["experiment=atari", "env.num_envs=1"]).settings
    envs = make_envs(settings, "training", 1)
    monkeypatch.setattr(memory, "free_memory", partial(int, 125 * 2**30))
    message = replay_size(settings, envs, tmp_path)
    envs.close()
    per_step = int(message.split()[1].replace(",", ""))
    assert 0 < per_step - (96 * 96 + 2 * 8192 + 32) < 200
    assert "for 5,000,000 steps; a save copies what is new." in message


def test_the_disk_is_named_where_it_has_the_room(settings: Settings, tmp_path: Path) -> None:
    """Between what memory and what the disk can hold; most machines have more disk."""
    envs = make_envs(settings, "training", 1)
    free, disk = free_memory(), shutil.disk_usage(tmp_path).free
    if disk < 1.5 * free:
        pytest.skip("this machine has more memory than disk")
    middle = replace(settings, total_steps=int(0.8 * free) // 144)  # the copies of a save fit, the steps do not
    with pytest.raises(ConfigError, match=r"replay\.capacity=\d+ or replay\.storage=disk\."):
        replay_size(middle, envs, tmp_path)
    with pytest.raises(ConfigError, match=r"give a smaller total_steps or replay\.storage=disk\."):
        replay_size(middle, envs, tmp_path, continued=True)  # its capacity cannot change any more


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/\n", {}, 8000 * 1024),
        ("0::/job/step\n", {"job/memory.max": "5000", "job/memory.current": "3000", "job/memory.stat": ""}, 2000),
        (
            "0::/job\n",
            {"memory.max": "max", "job/memory.max": "900", "job/memory.current": "800"}
            | {"job/memory.stat": "anon 5\ninactive_file 300\n"},
            400,
        ),
        ("0::/\n", {"memory.max": "10", "memory.current": "30", "memory.stat": "inactive_file 3"}, 0),
    ],
)
def test_memory_is_what_a_container_leaves(tmp_path: Path, groups: str, files: dict[str, str], free: int) -> None:
    written = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "proc/self/cgroup": groups}
    for name, text in {**written, **{f"groups/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path / "proc", tmp_path / "groups") == free
