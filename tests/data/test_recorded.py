"""Recorded data of every kind become the same steps, and what is wrong with them is named."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, LazyTensorStorage, OneHot, ReplayBuffer, Unbounded
from torchrl.envs import GymEnv, SerialEnv

from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.data.fitting import fitted, specs_of
from dreamer_torchrl.data.offline import steps_from_transitions
from dreamer_torchrl.data.recorded import read
from dreamer_torchrl.envs import make_env
from dreamer_torchrl.limits import ConfigError

CARTPOLE = Specs(Composite(observation=Unbounded((4,))), Composite(action=OneHot(2, dtype=torch.bool)), {})


def written(folder: Path, **arrays: object) -> Path:
    """One file of an episode of three steps, two actions and one number to see."""
    folder.mkdir(exist_ok=True)
    chosen = {"observation": np.arange(3.0).reshape(3, 1), "action": np.array([[0, 0], [0, 1], [1, 0]], np.float32)}
    chosen |= {"reward": np.array([0, 1, 2.0]), "is_first": np.array([True, False, False]), **arrays}
    number = len([*folder.iterdir()])
    np.savez(folder / f"{number}.npz", **{key: value for key, value in chosen.items() if value is not None})
    return folder


def column(steps: TensorDictBase, key: str) -> list[float]:
    return steps[key].squeeze(1).tolist()


def test_files_of_episodes(tmp_path: Path) -> None:
    """The action beside an observation led to it, so that it is that of the step before here."""
    folder = written(tmp_path / "data", is_terminal=np.array([False, False, True]), log_more=np.zeros(3))
    written(folder, is_first=None, discount=np.array([1.0, 1, 0]))
    written(folder, is_first=None, discount=np.array([1.0, 1, 1]))
    recorded = read(str(folder))
    steps = recorded.steps
    assert set(steps.keys()) == {"observation", "action", "reward", "is_init", "terminated", "done"}
    assert column(steps, "observation") == [0, 1, 2] * 3
    assert steps["action"].tolist() == [[0, 1], [1, 0], [1, 0]] * 3  # the last one has no meaning
    assert column(steps, "reward") == [0, 1, 2] * 3
    assert column(steps, "is_init") == [True, False, False] * 3
    assert column(steps, "done") == [False, False, True] * 3
    assert column(steps, "terminated") == [False, False, True] * 2 + [False] * 3
    specs = specs_of(recorded)
    assert isinstance(specs.full_action_spec["action"], OneHot)
    assert fitted(recorded, specs, "data")["action"].dtype is torch.bool


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"reward": None}, "has no reward, but observation, action, is_first"),
        ({"reward": np.zeros(2)}, "lengths observation 3, action 3, reward 2, is_first 3: they must be the same"),
        ({"is_first": np.array([True, False, True])}, "holds 2 episodes: write one file for each"),
        ({"observation": np.array([None, 1, 2])}, "cannot be read"),
    ],
)
def test_a_wrong_file_is_named(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"0\.npz .*{message}"):
        read(str(written(tmp_path / "data", **arrays)))


def test_files_that_do_not_belong_together_or_are_none(tmp_path: Path) -> None:
    folder = written(written(tmp_path / "data"), observation=np.zeros((3, 2)))
    with pytest.raises(ConfigError, match=r"1\.npz has observation: torch.float32 \[2\], the files before it .*\[1\]"):
        read(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds nothing that can be read: give the folder of a run"):
        read(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="is no folder"):
        read(str(tmp_path / "elsewhere"))
    (tmp_path / "empty/0.npz").write_bytes(b"PK not a file of arrays")
    with pytest.raises(ConfigError, match=r"0\.npz cannot be read"):
        read(str(tmp_path / "empty"))


def test_a_tensordict_on_disk(tmp_path: Path) -> None:
    """As TorchRL's data sets are stored; actions are one-hot or indices."""
    pairs = GymEnv("CartPole-v1").rollout(60, break_when_any_done=False)
    pairs.memmap(tmp_path / "pairs")
    expected = steps_from_transitions(pairs)
    steps = fitted(read(str(tmp_path / "pairs")), CARTPOLE, "pairs")
    assert_close(steps["observation"], expected["observation"])
    assert torch.equal(steps["action"], expected["action"].bool())
    pairs["action"] = pairs["action"].long().argmax(-1)
    pairs.memmap(tmp_path / "indices")
    assert torch.equal(fitted(read(str(tmp_path / "indices")), CARTPOLE, "")["action"], steps["action"])


@pytest.mark.parametrize("count", [30, 45, 60])
def test_a_replay_buffer_on_disk(count: int, tmp_path: Path) -> None:
    """Also one that was written around its end, whose oldest transition stands in the middle."""
    pairs = GymEnv("CartPole-v1").rollout(count, break_when_any_done=False)
    buffer = ReplayBuffer(storage=LazyTensorStorage(45))
    for some in pairs.split(15):
        buffer.extend(some)
    buffer.dumps(tmp_path / "buffer")
    expected = steps_from_transitions(pairs[-45:])
    assert_close(read(str(tmp_path / "buffer")).steps["observation"], expected["observation"])


def test_a_replay_buffer_of_several_environments(tmp_path: Path) -> None:
    """With a dimension of time, or flat with the numbers of the trajectories that are interleaved in it."""
    envs = SerialEnv(2, lambda: GymEnv("CartPole-v1"))
    wide, flat = ReplayBuffer(storage=LazyTensorStorage(200, ndim=2)), ReplayBuffer(storage=LazyTensorStorage(200))
    batches = list(Collector(envs, frames_per_batch=20, total_frames=80))
    for batch in batches:
        wide.extend(batch)
        flat.extend(batch.reshape(-1))
    wide.dumps(tmp_path / "wide")
    flat.dumps(tmp_path / "flat")
    expected = steps_from_transitions(torch.cat(batches, 1))
    assert_close(read(str(tmp_path / "wide")).steps["observation"], expected["observation"])
    one = read(str(tmp_path / "flat")).steps
    assert len(one) == len(expected) and one["is_init"].sum() == expected["is_init"].sum()


def test_a_folder_without_next_or_with_shuffled_transitions(tmp_path: Path) -> None:
    pairs = GymEnv("CartPole-v1").rollout(40, break_when_any_done=False)
    pairs.exclude("next").memmap(tmp_path / "alone")
    with pytest.raises(ConfigError, match="has no 'next', but action, done, observation"):
        read(str(tmp_path / "alone"))
    pairs[torch.arange(39, -1, -1)].memmap(tmp_path / "shuffled")
    with pytest.raises(ConfigError, match=r"shuffled: Transition \d+ leads to another 'observation'"):
        read(str(tmp_path / "shuffled"))
    pairs.exclude(("next", "reward")).memmap(tmp_path / "unpaid")
    with pytest.raises(ConfigError, match=r"unpaid: The adapter needs next/reward"):
        read(str(tmp_path / "unpaid"))
    (tmp_path / "shuffled/meta.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        read(str(tmp_path / "shuffled"))


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_minari(id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote is what the environment of the same id shows, by name and by folder."""
    minari = pytest.importorskip("minari", reason="minari is not installed: pip install 'dreamer_torchrl[minari]'")
    make_buffer = pytest.importorskip("minari.data_collector.episode_buffer").EpisodeBuffer
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env, played, buffers = gymnasium.make(id, max_episode_steps=30), [], []
    ours = make_env("gym", {"id": id, "arguments": {"max_episode_steps": 30}})
    for seed in range(2):
        rows, seen, ended = [], [env.reset(seed=seed)[0]], False
        ours.set_seed(seed)
        step = ours.reset()
        while not ended:
            step = ours.step(ours.rand_action(step))
            action = ours.read_action(step["action"])
            observation, *rest, _ = env.step(action)
            seen.append(observation)
            rows.append((action, *rest))
            played.append(step)
            step, ended = step["next"].exclude("reward"), any(rest[1:])
        names = ("actions", "rewards", "terminations", "truncations")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        buffers.append(make_buffer(observations=seen, **columns))
    minari.create_dataset_from_buffers("tests/data-v0", buffers, env=env)
    expected = steps_from_transitions(torch.stack(played))
    for source in ("minari:tests/data-v0", str(tmp_path / "tests/data-v0")):
        recorded = read(source)
        assert torch.equal(recorded.steps["observation"], expected["observation"])
        for key in ("action", "reward", "is_init", "terminated", "done"):
            assert_close(recorded.steps[key], expected[key])
        specs = specs_of(recorded)
        assert specs.observation_spec["observation"] == ours.observation_spec["observation"]
        steps = fitted(recorded, specs, source)
        if id == "Pendulum-v1":
            assert_close(steps["action"] * 2, expected["action"])
            assert specs.bounds["action"][1].tolist() == [2]
    with pytest.raises(ConfigError, match="minari:tests/none-v0 cannot be read"):
        monkeypatch.setattr(minari.storage.hosting, "download_dataset", refuse)
        read("minari:tests/none-v0")


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not there")


def test_specs_and_bounds_from_the_data_alone(tmp_path: Path) -> None:
    """An image keeps its bytes; actions in their own units come between their least and largest value."""
    time = torch.arange(5.0)
    pixels = torch.zeros(6, 64, 64, dtype=torch.uint8)
    pixels[:, 0, 0] = torch.arange(6)
    arrival = {"pixels": pixels[1:], "reward": time, "terminated": time > 9, "done": time == 4}
    pairs = TensorDict({"pixels": pixels[:-1], "action": 3 + time.unsqueeze(1), "next": arrival}, [5])
    pairs.memmap(tmp_path / "data")
    recorded = read(str(tmp_path / "data"))
    specs = specs_of(recorded)
    steps = fitted(recorded, specs, "data")
    assert specs.observation_spec["pixels"].shape == (64, 64, 1)
    assert steps["pixels"].dtype is torch.uint8 and steps["pixels"].shape == (6, 64, 64, 1)
    assert steps["action"].flatten().tolist() == [-1, -0.5, 0, 0.5, 1, 1]
    assert [end.item() for end in specs.bounds["action"]] == [3, 7]


def test_what_does_not_fit_the_environment_is_named(tmp_path: Path) -> None:
    """Key, what was found, and the remedy; the one other entry of the wanted shape is taken whatever its name."""
    recorded = read(str(written(tmp_path / "data", observation=None, vector=np.zeros((3, 4)))))
    assert fitted(recorded, CARTPOLE, "data")["observation"].shape == (3, 4)
    other = Specs(Composite(observation=Unbounded((3,))), CARTPOLE.full_action_spec, {})
    with pytest.raises(ConfigError, match=r"offline=data has no 'observation'; it has vector \[4\]: give the env="):
        fitted(recorded, other, "data")
    more = Specs(CARTPOLE.observation_spec, Composite(action=OneHot(3, dtype=torch.bool)), {})
    with pytest.raises(ConfigError, match=r"'action' is float32 \[2\] per step, and must be 1 of \(3,\) classes"):
        fitted(recorded, more, "data")
    bounded = Specs(CARTPOLE.observation_spec, *(Composite(action=Bounded(-1, 1, (2,))), {"action": (-2, 2)}))
    recorded.steps["action"] *= 2
    with pytest.raises(ConfigError, match="'action' of up to 2, actions in such data are -1 to 1: scale them"):
        fitted(recorded, bounded, "data")
    recorded.steps["vector"][1, 2] = torch.nan
    with pytest.raises(ConfigError, match="'observation' has values that are not finite"):
        fitted(recorded, CARTPOLE, "data")
