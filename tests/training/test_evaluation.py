"""Evaluation: the episodes that a loop by hand would play, each stream its share, the same ones each time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn
from torchrl.envs.transforms import PermuteTransform, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl import build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.episodes import steps_of
from dreamer_torchrl.collectors.stream_env import StreamEnv, episode_seed
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.envs import make_env
from dreamer_torchrl.envs.gym import Gymnasium
from dreamer_torchrl.envs.tasks import GridReach
from dreamer_torchrl.training.evaluation import evaluate
from tests.agents.acting_examples import TINY
from tests.collectors.troubles import ENTROPY, walks
from tests.training import training_examples

GRID = {"id": "dreamer_torchrl/GridReach-v0"}


def stream(family: str, options: dict[str, Any], place: int) -> StreamEnv:
    return StreamEnv(make_env(family, options), entropy=(place,))


def streams_of(count: int, family: str = "gym", **options: Any) -> StreamEnvs:
    return StreamEnvs([partial(stream, family, options, place) for place in range(count)])


def agent_for(streams: StreamEnvs) -> Agent:
    torch.manual_seed(0)
    agent = build_agent(streams.observation_spec, streams.full_action_spec, TINY)
    for key, parameter in agent.named_parameters():
        if key.startswith("actor.heads"):
            nn.init.normal_(parameter)
    return agent


def seeded(agent: Agent, seed: int = 0) -> Policy:
    policy = agent.policy
    policy.generator = torch.Generator().manual_seed(seed)
    return policy


def by_hand(policy: Policy, env: gymnasium.Env, seed: int) -> tuple[float, int]:
    belief, state = policy.rssm.initial(1)
    action = torch.zeros(1, 2)
    observation, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        while not over:
            encoded = policy.encoder(torch.from_numpy(observation).unsqueeze(0))
            belief, state, action = policy.step(encoded, action, torch.zeros(1, 1, dtype=torch.bool), belief, state)
            observation, reward, terminated, truncated, _ = env.step(int(action.argmax()))
            total, length, over = total + reward, length + 1, terminated or truncated
    return total, length


def test_returns_are_those_of_a_loop_by_hand() -> None:
    """Episode k is played by stream k modulo their number; one more or less does not matter."""
    streams = streams_of(3, id="CartPole-v1")
    agent = agent_for(streams)
    evaluation = evaluate(agent.policy, streams, 7, deterministic=True)
    env = gymnasium.make("CartPole-v1")
    expected = [by_hand(agent.policy, env, episode_seed((k % 3,), k // 3)) for k in range(7)]
    assert list(zip(evaluation.returns, evaluation.lengths, strict=True)) == expected
    assert len(set(evaluation.lengths)) > 3


def lengths_by_seed(episodes: int, count: int, skip: tuple[int, int] | None = None) -> list[int]:
    """How long the episodes of `Walk` are, whatever is done; ``skip`` is a (stream, episode) that does not count."""
    lengths = []
    for number in range(episodes):
        place, episode = number % count, number // count
        episode += bool(skip and skip[0] == place and skip[1] <= episode)
        generator, _ = gymnasium.utils.seeding.np_random(episode_seed((ENTROPY, place), episode))
        lengths.append(int(generator.integers(3, 10)))
    return lengths


def test_short_episodes_are_not_preferred() -> None:
    """Each stream plays its share, however long it takes; the first episodes to end would be the short ones."""
    streams = walks({}, {}, {}, {})
    for episodes in (1, 5, 16):
        evaluation = evaluate(seeded(agent_for(streams)), streams, episodes)
        assert evaluation.lengths == lengths_by_seed(episodes, 4) and len(evaluation.returns) == episodes


def test_the_same_numbers_each_time() -> None:
    """Whatever the streams did before; drawn actions depend on the policy's generator, most likely ones do not."""
    streams = walks({}, {})
    agent = agent_for(streams)
    drawn = [evaluate(seeded(agent, seed), streams, 4).returns for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    sure = [evaluate(seeded(agent, seed), streams, 4, deterministic=True).returns for seed in (1, 2)]
    assert sure[0] == sure[1] != drawn[0]
    assert evaluate(seeded(agent, 1), walks({}, {}), 4).returns == drawn[0]


def test_an_episode_in_which_the_environment_fails_does_not_count(tmp_path: Path) -> None:
    """The next one of that stream does, and its steps are recorded."""
    broken = walks({"trouble": "step", "at": 2, "mark": tmp_path / "first"}, {})
    evaluation = evaluate(seeded(agent_for(broken)), broken, 2, record=100)
    assert len(evaluation.notes) == 1 and evaluation.steps.shape == (evaluation.lengths[0] + 1,)
    assert evaluation.steps["is_init"].sum() == 1 and evaluation.steps["is_init"][0]
    sound = lengths_by_seed(6, 2)
    streams = walks({}, {"trouble": "step", "at": sound[1] + 1, "mark": tmp_path / "mark"})
    evaluation = evaluate(seeded(agent_for(streams)), streams, 6)
    assert evaluation.lengths == lengths_by_seed(6, 2, skip=(1, 1)) != sound
    assert len(evaluation.notes) == 1
    assert "out of order" in evaluation.notes[0]
    assert streams.notes == []


def test_an_episode_that_never_ends_is_cut_off() -> None:
    streams = walks({}, {})
    whole = lengths_by_seed(8, 2)
    evaluation = evaluate(seeded(agent_for(streams)), streams, 8, longest=5)
    assert evaluation.lengths == [min(length, 5) for length in whole]
    assert min(whole) < 5 < max(whole)


def test_films_show_the_first_episode_from_start_to_end() -> None:
    """By the environment's renderer, the terminal picture included."""
    streams = streams_of(2, id="dreamer_torchrl/GridReach-v0", render=True)
    evaluation = evaluate(seeded(agent_for(streams)), streams, 3, film=True)
    assert len(evaluation.frames) == evaluation.lengths[0] + 1
    assert {frame.shape for frame in evaluation.frames} == {(64, 64, 3)}
    start = make_env("gym", {"id": "dreamer_torchrl/GridReach-v0"})
    start.set_seed(episode_seed((0,), 0))
    assert np.array_equal(evaluation.frames[0], start.reset()["pixels"].numpy())
    assert any(not np.array_equal(evaluation.frames[0], frame) for frame in evaluation.frames)
    assert evaluate(seeded(agent_for(streams)), streams, 3).frames == []


def test_films_of_long_episodes_show_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = streams_of(2, id="dreamer_torchrl/GridReach-v0", render=False)
    agent = agent_for(streams)
    whole = evaluate(seeded(agent), streams, 3, film=True)
    monkeypatch.setattr("dreamer_torchrl.training.evaluation.FILMED", 4)
    cut = evaluate(seeded(agent), streams, 3, film=True)
    assert (cut.returns, cut.lengths) == (whole.returns, whole.lengths)
    assert len(cut.frames) == 4 < len(whole.frames)
    assert np.array_equal(cut.frames, whole.frames[:4])
    assert cut.notes == []


def test_a_renderer_that_fails_ends_the_film_alone() -> None:
    """The numbers are those without a film, and a note tells."""
    calls, pictures = [], 2

    class LosesItsDisplay(gymnasium.Wrapper):
        def render(self) -> np.ndarray:
            calls.append(self)
            if len(calls) > pictures:
                raise RuntimeError("no display")
            return self.env.render()

    env = Gymnasium(LosesItsDisplay(GridReach(render_mode="rgb_array")))
    streams = StreamEnvs([partial(StreamEnv, env, entropy=(0,))])
    agent = agent_for(streams)
    plain = evaluate(seeded(agent), streams, 3)
    evaluation = evaluate(seeded(agent), streams, 3, film=True)
    assert (evaluation.returns, evaluation.lengths) == (plain.returns, plain.lengths)
    assert len(evaluation.frames) == pictures and len(calls) == pictures + 1
    assert evaluation.notes == [f"The video has {pictures} pictures: drawing failed with RuntimeError: no display."]


def test_the_first_episode_is_recorded_as_a_replay_would_have_it() -> None:
    """All its steps, the terminal one included, or the first ones of them; numbers are the same without."""
    streams = walks({}, {}, {})
    agent = agent_for(streams)
    plain = evaluate(seeded(agent), streams, 4)
    assert plain.steps is None
    evaluation = evaluate(seeded(agent), streams, 4, record=100)
    assert (evaluation.returns, evaluation.lengths) == (plain.returns, plain.lengths)
    steps = evaluation.steps
    assert steps.shape == (evaluation.lengths[0] + 1,)
    assert steps["is_init"].flatten().tolist() == [True] + [False] * evaluation.lengths[0]
    assert steps["done"].flatten().tolist() == [False] * evaluation.lengths[0] + [True]
    assert float(steps["reward"].sum()) == pytest.approx(evaluation.returns[0], rel=1e-6)
    assert {("action", "gear"), ("inside", "kind"), "belief", "terminated"} <= set(steps.keys(True, True))
    first = evaluate(seeded(agent), streams, 4, record=2).steps
    assert first.shape == (2,) and (first == steps[:2]).all()
    envs = walks({}, {}, {})
    with set_exploration_type(ExplorationType.RANDOM):
        acted = seeded(agent)(envs.reset())
    assert (steps_of(envs.step(acted))[0] == steps[0]).all()


@pytest.mark.parametrize("transform", [(PermuteTransform((-1, -3, -2), in_keys=["pixels"]),), ()])
def test_films_show_what_the_agent_sees_where_nothing_is_rendered(transform: tuple[PermuteTransform, ...]) -> None:
    env = TransformedEnv(make_env("gym", GRID), *transform)
    streams = StreamEnvs([partial(StreamEnv, env, entropy=(0,))])
    evaluation = evaluate(seeded(agent_for(streams)), streams, 1, film=True)
    assert np.array_equal(evaluation.frames[0], stream("gym", GRID, 0).begin()["pixels"].numpy())
    assert len(evaluation.frames) == evaluation.lengths[0] + 1


class Stack(gymnasium.ObservationWrapper):
    """Four gray pictures, the last of which is the newest."""

    observation_space = Box(0, 255, (64, 64, 4), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.pad(observation[..., :1], ((0, 0), (0, 0), (3, 0)))


def test_of_stacked_frames_a_film_shows_the_newest() -> None:
    streams = StreamEnvs([lambda: StreamEnv(Gymnasium(Stack(GridReach())), entropy=(0,))])
    evaluation = evaluate(seeded(agent_for(streams)), streams, 1, film=True)
    assert evaluation.frames[0].shape == (64, 64, 1) and evaluation.frames[0].any()


def test_where_nothing_can_be_filmed_a_note_says_so() -> None:
    streams = streams_of(1, id="CartPole-v1")
    evaluation = evaluate(seeded(agent_for(streams)), streams, 1, film=True)
    assert evaluation.frames == [] and "no renderer" in evaluation.notes[0]


def test_exploration_noise_is_for_training_alone(tmp_path: Path) -> None:
    """Other episodes of training; the evaluation of an agent that learned nothing stays the same."""
    found = []
    for noise in (0.0, 0.8):
        words = ("env=pendulum", "train_ratio=0", "total_steps=500", f"exploration.noise={noise}")
        records = training_examples.episodes(training_examples.trained(tmp_path / f"{noise}", *words))
        found.append([[r[key] for r in records if key in r] for key in ("episode/return", "eval/return")])
    (plain, plain_evaluation), (noisy, noisy_evaluation) = found
    assert plain and plain != noisy
    assert plain_evaluation and plain_evaluation == noisy_evaluation
