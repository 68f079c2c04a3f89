"""What cannot be is refused before anything starts, in one line that names the nearest right thing or the mend."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamer_torchrl.config.checks import ConfigError, as_word, check, leaves, nearest
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.training import memory as room
from dreamer_torchrl.training.build import choose_device, make_agent, make_envs, make_replay
from dreamer_torchrl.training.memory import free_memory, replay_size

REFUSED = {
    # names
    "sede=1": "There is no setting 'sede'. Did you mean 'seed'?",
    "Seed=1": "There is no setting 'Seed'. Did you mean 'seed'?",
    "eval.evry=1": "There is no setting 'eval.evry'. Did you mean 'eval.every'?",
    "num_envs=1": "There is no setting 'num_envs'. Did you mean 'env.num_envs'?",
    "size.unit=1": "There is no setting 'size.unit'. Did you mean 'size.units'?",
    "loger=wandb": "There is no setting 'loger'. Did you mean 'logger'?",
    "experiments=official": "There is no setting 'experiments'. Did you mean 'experiment'?",
    "+foo=1": "There is no setting 'foo'.",
    "env.game=pong": "There is no setting 'env.game'.",
    "env=pong eval.arguments.x=1": "eval.arguments is impossible: this environment takes no arguments",
    "env=dmc_proprio env.arguments.x=1": "There is no setting 'env.arguments.x'.",
    "env=pendlum": "There is no env 'pendlum'. Did you mean 'pendulum'? There are: acrobot, ",
    "env=pog": "There is no env 'pog'. Did you mean 'pong'?",
    "env=walker_walk": "Others: any Atari game, env=gym env.id=..., env=dmc_proprio env.task=...",
    "env=null": "There is no env 'null'.",
    "size=": "There is no size ''. There are: nano, ",
    "env=[pong,cartpole]": "There is no env '[pong, cartpole]'.",
    "size=12m": "There is no size '12m'. Did you mean 'size12m'? There are: nano, size1m, size12m, ",
    "logger=wand": "There is no logger 'wand'. Did you mean 'wandb'? There are: none, tensorboard, wandb.",
    "experiment=offical": "There is no experiment 'offical'. Did you mean 'official'?",
    "env=gym env.id=CartPol-v1": "Unknown environment id 'CartPol-v1': did you mean 'CartPole-v1'?",
    "env=gym env.id=5": "Unknown environment id '5'",
    "env=gym env.id=": "needs an option 'id'",
    "env=atari env.game=pog": "Unknown Atari game 'pog': did you mean 'pong'?",
    "env=custom": "needs an option 'factory'",
    "env=custom env.factory=here": "The factory 'here' must be of the form 'package.module:function'.",
    "env=custom env.factory=5": "The factory '5' must be of the form",
    "env=custom env.factory=dreamer_torchrl.envs.tasks:Memry": "did you mean 'Memory'?",
    "env.family=dmc": "needs an option 'task'",
    # types
    "seed=x": "seed='x' should be a whole number.",
    "seed='3'": "seed='3' should be a whole number.",
    "seed=": "seed='' should be a whole number.",
    "seed=null": "seed=null should be a whole number.",
    "seed=true": "seed=true should be a whole number.",
    "total_steps=1.5": "total_steps=1.5 should be a whole number.",
    "train_ratio=nan": "train_ratio=nan should be a number.",
    "compile=1": "compile=1 should be true or false.",
    "wandb.name=[1]": "wandb.name=[1] should be a word.",
    "env=pong env.size=1.5": "env.size=1.5 should be a whole number.",
    "env=pong env.gray=3": "env.gray=3 should be true or false.",
    "env.arguments=3": "env.arguments=3 should be entries, such as {first: 1, second: two}.",
    "learner.betas=0.9": "learner.betas=0.9 should be 2 numbers, such as [0.5, 0.5].",
    "learner.betas=[a,0.9]": "learner.betas='a' should be a number.",
    "learner=3": "learner=3 replaces a whole section: set one of its entries, such as learner.context.",
    "eval=null": "eval=null replaces a whole section: set one of its entries, such as eval.every.",
    # values
    "dtype=float16": "dtype=float16 is impossible. Did you mean 'bfloat16'? Possible: float32, bfloat16.",
    "wandb.mode=off": "wandb.mode=off is impossible. Did you mean 'offline'? Possible: disabled, offline, online.",
    "seed=-1": "seed=-1 is impossible: give at least 0.",
    "seed=9223372036854775808": "is impossible: give at most 9223372036854775807.",
    "total_steps=0": "total_steps=0 is impossible: give at least 1.",
    "threads=0": "threads=0 is impossible: give at least 1.",
    "replay.length=1": "replay.length=1 is impossible: give at least 2.",
    "unimix=1.5": "unimix=1.5 is impossible: give at most 1.",
    "learner.return_lambda=-0.1": "learner.return_lambda=-0.1 is impossible: give at least 0.",
    "learner.actor_scale=-1": "learner.actor_scale=-1.0 is impossible: give at least 0.",
    "learner.clip=0": "learner.clip=0.0 is impossible: give more than 0.",
    "learner.learning_rate=inf": "learner.learning_rate=inf is impossible: give a number that ends.",
    "learner.betas=[0.9,1]": "learner.betas=[0.9, 1.0] is impossible: both lie in 0 to 1, without 1.",
    "learner.return_percentiles=[95,5]": "learner.return_percentiles=[95.0, 5.0] is impossible: give a lower and a hi",
    "size.units=0": "size.units=0 is impossible: give at least 1.",
    "size.classes=257": "size.classes=257 is impossible: give at most 256.",
    "size.belief=100 size.blocks=12": "size.belief=100 does not split into blocks: give a multiple of 24.",
    "size.depth=3": "size.depth=3 is impossible: give an even number.",
    "env=pong env.size=84": "env.size=84 is impossible: images have a side of 48, 64, 80 and so on up to 256.",
    "env=pong env.actions=some": "actions is 'some': it must be 'all' or 'needed'.",
    "experiment=null replay.capacity=33 env.num_envs=2": "replay.capacity=33 is less than one sequence of each env",
    "device=gpu": "device=gpu is impossible: there are auto, cpu, mps, cuda, cuda:0, cuda:1 and so on.",
    "device=cuda:x": "device=cuda:x is impossible",
    # what Hydra can and a run cannot
    "seed=1,2": "asks for several runs: add --multirun to have them one after another",
    "env=pong,breakout": "asks for several runs",
    "seed=range(1,3)": "asks for several runs",
    "~seed": "takes something away, but everything here has a value: set it",
    "~env": "takes something away",
    "env@eval=pong": "'env@eval=pong' names a place for env, but there is only one: write env=... instead.",
    "hydra.run.dir=x": "a run's folder is run_dir=...",
    "hydra/launcher=joblib": "it has no settings",
    "seed": "'seed' is no setting: write key=value, such as seed=1 or env=pendulum.",
    "wandb.name=a(b)": "cannot be read: write key=value, or quote the value: \"wandb.name='a(b)'\".",
    "seed=${nope}": "Interpolation key 'nope' not found",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_told_in_a_line(words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(words.split())
    assert REFUSED[words] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words", ["experiment=null replay.capacity=34 env.num_envs=2", "experiment=null replay.capacity=3 replay.length=2"]
)
def test_the_smallest_replay_that_passes_can_be_made(words: str) -> None:
    replay = make_replay(load(words.split()).settings)
    assert replay.sampler.written == 0


@pytest.mark.parametrize("words", ["size.belief=24 size.blocks=3 size.depth=2", "size.classes=256 size.stochastic=1"])
def test_odd_sizes_that_pass_make_an_agent_for_images(words: str) -> None:
    settings = load(["env=grid_reach", *words.split()]).settings
    envs = make_envs(settings, "training", 1)
    assert make_agent(settings, envs).rssm.belief_size == settings.size.belief
    envs.close()


def test_a_gpu_is_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of a test may have one: nothing is looked for where there cannot be any."""
    monkeypatch.setattr("dreamer_torchrl.config.checks.GPU_DEVICES", ("/dev/no_such_thing",))
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ConfigError, match="device=cuda:1, but this machine has no GPU: leave it at auto"):
        check(replace(load([]).settings, device="cuda:1"))
    with pytest.raises(ConfigError, match="device=mps is a Mac's"):
        check(replace(load([]).settings, device="mps"))
    monkeypatch.setattr("dreamer_torchrl.config.checks.GPU_DEVICES", ("/dev/nul[l]",))
    check(replace(load([]).settings, device="cuda:1"))


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=6))
def test_the_nearest_name_is_a_known_one(name: str, known: list[str]) -> None:
    hint = nearest(name, known)
    assert hint == "" or hint in [f" Did you mean {other!r}?" for other in known]
    assert name not in known or hint == f" Did you mean {name!r}?"


def test_names_that_end_alike_are_told_apart() -> None:
    known = [f"{section}.every" for section in ("eval", "log", "checkpoint")]
    for name in known:
        assert nearest(name.replace("every", "evry"), known) == f" Did you mean {name!r}?"


def test_a_gpu_that_torch_cannot_see() -> None:
    """The machine may have one all the same."""
    count = torch.cuda.device_count()
    assert choose_device("auto").type == ("cuda" if count else "cpu")
    with pytest.raises(ConfigError, match=f"device=cuda:{count}, but torch .* sees {count or 'no'} GPU"):
        choose_device(f"cuda:{count}")


def test_words_of_values() -> None:
    assert [as_word(value) for value in (None, True, False, 3, 0.5, "word", (1.0, None))] == [
        *("null", "true", "false", "3", "0.5", "word", "[1.0, null]")
    ]
    assert leaves({"a": {"b": 1, "c": {}}, "d": None}) == {"a.b": 1, "a.c": {}, "d": None}


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Of a small agent."""
    return load(
        ["size.belief=32", "size.units=16", "size.hidden=16", "total_steps=1e15", "replay.capacity=1e15"]
    ).settings


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_replay_that_does_not_fit_is_refused_with_one_that_does(
    settings: Settings, storage: str, tmp_path: Path
) -> None:
    settings = replace(settings, replay=replace(settings.replay, storage=storage))
    envs = make_envs(settings, "training", 1)
    complaint = r"The replay of 1,000,000,000,000,000 steps of [\d,]+ bytes needs [\d.]+ TB of "
    with pytest.raises(ConfigError, match=complaint) as refused:
        replay_size(settings, envs, tmp_path)
    place = f"of disk in {tmp_path}, " if storage == "disk" else "of memory (saves copy 144 of each), "
    assert place in str(refused.value)
    assert "replay.storage" not in str(refused.value)  # no disk has as much either
    capacity = int(str(refused.value).partition("replay.capacity=")[2].rstrip("."))
    fitting = replace(settings, replay=replace(settings.replay, capacity=capacity))
    assert f"for {capacity:,} steps;" in replay_size(fitting, envs, tmp_path)
    per_step = int(replay_size(fitting, envs, tmp_path).split()[1].replace(",", ""))
    memory, disk = free_memory(), shutil.disk_usage(tmp_path).free
    needs = ((disk, per_step), (memory, 144)) if storage == "disk" else ((memory, per_step + 144),)
    assert 0.5 < max(capacity * each / free for free, each in needs) < 1
    short = replay_size(replace(settings, total_steps=50), envs, tmp_path)
    assert "for 50 steps; up to 7 kB of memory more in a save." in short  # a short run fills no more than its steps


def test_latents_of_a_replay_on_disk_must_fit_into_memory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save copies them there: all have changed, when it is long after the last one."""
    settings = replace(settings, total_steps=1_000_000, replay=replace(settings.replay, storage="disk"))
    envs = make_envs(settings, "training", 1)
    monkeypatch.setattr(room, "free_memory", partial(int, 144e6))
    assert "up to 144 MB of memory more in a save." in replay_size(settings, envs, tmp_path)
    monkeypatch.setattr(room, "free_memory", partial(int, 143e6))
    complaint = r"needs 144 MB of memory \(saves copy 144 of each\), 143 MB are free: give replay.capacity=794444\."
    with pytest.raises(ConfigError, match=complaint):
        replay_size(settings, envs, tmp_path)


def test_the_disk_is_named_where_it_has_the_room(settings: Settings, tmp_path: Path) -> None:
    """Between what memory and what the disk can hold; most machines have more disk."""
    envs = make_envs(settings, "training", 1)
    memory, disk = free_memory(), shutil.disk_usage(tmp_path).free
    if disk < 1.5 * memory:
        pytest.skip("this machine has more memory than disk")
    middle = replace(settings, total_steps=int(0.8 * memory) // 144)  # the copies of a save fit, the steps do not
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
        (
            "4:cpu,memory:/elsewhere\n3:cpu:/\n",
            {"memory/memory.limit_in_bytes": "700", "memory/memory.usage_in_bytes": "300"}
            | {"memory/memory.stat": "total_inactive_file 100\ninactive_file 7\n"},
            500,
        ),
    ],
)
def test_memory_is_what_a_container_leaves(tmp_path: Path, groups: str, files: dict[str, str], free: int) -> None:
    written = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "proc/self/cgroup": groups}
    for name, text in {**written, **{f"groups/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path / "proc", tmp_path / "groups") == free


def test_memory_of_this_machine() -> None:
    assert 1e7 < free_memory() < 1e14
