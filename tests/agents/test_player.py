"""Who knows no TorchRL can act: the same observations give the same actions, in the form that Gymnasium has them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Bounded, Categorical, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.player import ActionForm, Latents, Player
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.modules.actor import ActionSpace
from tests.agents.acting_examples import NAMES, TINY, Recorder, agent_for, environment, leaves, stream

every_name = pytest.mark.parametrize("name", NAMES)
MODES = {False: ExplorationType.DETERMINISTIC, True: ExplorationType.RANDOM}


def small(observation: TensorSpec, action: TensorSpec | None = None, **options: Any) -> Agent:
    """An agent with one observation, two if it is a `Composite`."""
    whole = observation if isinstance(observation, Composite) else Composite(observation=observation)
    return Agent(whole, OneHot(2) if action is None else action, TINY, **options)


def same(found: Any, expected: Any) -> bool:
    """Whether two nested dicts hold the same arrays."""
    pairs = zip(leaves(found), leaves(expected), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def stacked(observations: list[Any]) -> Any:
    """As a vector environment gives them: dicts of arrays with N in front."""
    if isinstance(observations[0], dict):
        return {name: stacked([each[name] for each in observations]) for name in observations[0]}
    return np.stack(observations)


def row(value: Any, place: int) -> Any:
    """What a vector environment gives to one of its environments."""
    return {name: row(each, place) for name, each in value.items()} if isinstance(value, dict) else value[place]


@pytest.mark.parametrize(
    ("name", "categorical", "sample"),
    [("Pendulum-v1", False, True), ("crane", False, True), ("crane", True, False), ("tile", True, True)],
)
def test_gives_what_the_policy_gives_through_torchrl(name: str, categorical: bool, sample: bool) -> None:
    """Bit for bit what reached the environment in a rollout, over several episodes, and the same latents."""
    agent, env = agent_for(name, categorical), stream(name, categorical)
    policy = Policy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(5))
    env.set_seed(0)
    with set_exploration_type(MODES[sample]):
        steps = env.rollout(17, policy)
    recorder: Recorder = env.env._env
    player = Player(agent, sample=sample, seed=5, bounds=env.bounds)
    now = 0
    for shown, given in zip(recorder.shown, recorder.given, strict=True):
        state = None
        for place, observation in enumerate(shown[: 17 - now]):
            action, state = player.act(observation, state)
            if place < len(given):  # what is done at the end of an episode reaches no environment
                assert same(action, given[place])
            for key, value in state._asdict().items():
                assert value[0].equal(steps[key][now])
            now += 1
    assert now == 17
    assert len(recorder.given) > 1 or name in {"CartPole-v1", "Pendulum-v1"}


@every_name
def test_actions_are_taken_by_the_environment(name: str) -> None:
    agent, env = agent_for(name), environment(name)
    player = Player(agent, sample=True, bounds=stream(name).bounds)
    observation, state = env.reset(seed=0)[0], None
    chosen = []
    for _ in range(5):
        action, state = player.act(observation, state)
        assert env.action_space.contains(action)
        observation = env.step(action)[0]
        chosen.append(action)
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        assert {type(action) for action in chosen} == {int}


@pytest.mark.parametrize(("name", "count"), [("crane", 1), ("crane", 3), ("tile", 3), ("multi_discrete", 3)])
def test_several_environments_are_as_many_single_ones(name: str, count: int) -> None:
    """Also with one in a batch, which is not the same as one environment."""
    agent, space = agent_for(name), environment(name).observation_space
    player = Player(agent, bounds=stream(name).bounds)
    states, state = [None] * count, None
    space.seed(0)
    for _ in range(3):
        observations = [space.sample() for _ in range(count)]
        actions, state = player.act(stacked(observations), state)
        assert {len(leaf) for leaf in leaves(actions)} == {count}
        for place, observation in enumerate(observations):
            action, states[place] = player.act(observation, states[place])
            assert [leaf.dtype for leaf in leaves(action)] == [leaf.dtype for leaf in leaves(actions)]
            for ours, theirs in zip(leaves(action), leaves(row(actions, place)), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
            torch.testing.assert_close(states[place].belief[0], state.belief[place])


def test_a_state_stays_as_it_is() -> None:
    """One may go back to it; what the caller does to the action is not remembered either."""
    agent = small(Unbounded((3,)), Unbounded((2,)))
    player = Player(agent)
    _, state = player.act(np.ones(3, np.float32))
    kept = Latents(*[value.clone() for value in state])
    action, later = player.act(np.ones(3, np.float32), state)
    chosen, kept_later = action.copy(), later.previous_action.clone()
    action[:] = 100.0
    again, _ = player.act(np.ones(3, np.float32), state)
    assert all(value.equal(before) for value, before in zip(state, kept, strict=True))
    assert later.previous_action.equal(kept_later)
    assert (again == chosen).all()


def test_bounds_are_met_exactly_and_never_passed() -> None:
    low, high = torch.tensor([-0.1, 0.0, 1e-3]), torch.tensor([0.3, 7.0, 1e6])
    form = ActionForm(ActionSpace(Bounded(-1, 1, (3,))), {"action": (low, high)})
    assert form(torch.full((3,), -1.0))["action"].equal(low)
    assert form(torch.full((3,), 5.0))["action"].equal(high)
    inside = form(4 * torch.rand(10_000, 3) - 2)["action"]
    assert (inside >= low).all() and (inside <= high).all()
    torch.testing.assert_close(form(torch.zeros(3))["action"], (low + high) / 2)


@pytest.mark.parametrize(
    ("bounds", "complaint"),
    [
        ({"steer": (-1, 1)}, r"Bounds of 'steer', which is no action of floats: there are \['arm/joints'\]"),
        ({"gear": (0, 2)}, "Bounds of 'gear', which is no action of floats"),
        ({("arm", "joints"): (-np.inf, 1)}, r"'arm/joints' has bounds -inf to 1, which are not finite: leave them out"),
    ],
)
def test_impossible_bounds_are_refused(bounds: dict[Any, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Player(agent_for("crane"), bounds=bounds)


def test_numbers_of_every_kind_are_the_same_observation() -> None:
    """Exactly what the encoder takes in training, in the dtype of the spec."""
    agent, floats = small(Unbounded((3,))), np.float32([1, 2, 3])
    taken: list[torch.Tensor] = []
    agent.encoder.register_forward_pre_hook(lambda _, inputs: taken.extend(inputs))
    kinds = [floats.astype(dtype) for dtype in ("float64", "float16", "int64")]
    kinds += [floats[::-1].copy()[::-1], np.broadcast_to(floats, (3,)), [1, 2.0, 3], torch.tensor(floats)]
    for value in [*kinds, {"observation": floats, "beside": np.zeros(9)}]:
        Player(agent).act(value)
        last = taken.pop()
        assert last.dtype is torch.float32 and last.equal(torch.tensor([[1.0, 2.0, 3.0]]))


SEES = Composite(
    camera=Composite(front=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8)),
    load=OneHot(4),
    place=Categorical(3),
    tilt=Bounded(-1, 1, (2,), dtype=torch.int64),
)
GOOD = {"camera": {"front": np.zeros((48, 48, 3), np.uint8)}, "load": 1, "place": 2, "tilt": np.int64([-1, 1])}


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"load": 4}, ValueError, "'load' is 4: give whole numbers from 0 to 3"),
        ({"tilt": np.int64([0, 2])}, ValueError, r"'tilt' is \[0, 2\]: give whole numbers from -1 to 1"),
        ({"place": 1.0}, TypeError, "'place' is of dtype float64: give whole numbers from 0 to 2"),
        ({"camera": {"front": np.zeros((48, 48, 3))}}, TypeError, "'camera/front' is of dtype float64: give uint8"),
        (
            {"camera": {"front": np.zeros((3, 48, 48), np.uint8)}},
            ValueError,
            r"'camera/front' has shape \[3, 48, 48\]: give it as in training, \[48, 48, 3\] for one environment "
            r"or \['N', 48, 48, 3\] for N",
        ),
        ({"load": np.zeros((2, 2), int)}, ValueError, r"'load' has shape \[2, 2\]: give it as in training, \[\]"),
        (
            {"load": [1, 2]},
            ValueError,
            "different numbers of environments, camera/front of one, load of 2, place of one, tilt",
        ),
        ({"camera": {}}, KeyError, "'camera/front' is missing: give a dict that holds camera/front, load, place, tilt"),
        ({"camera": 3}, KeyError, "'camera/front' is missing"),
    ],
)
def test_an_impossible_observation_is_named_with_the_mend(
    change: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    player = Player(small(SEES))
    player.act(GOOD)
    with pytest.raises(KeyError, match="give a dict that holds camera/front, load, place, tilt"):
        player.act(np.zeros(3))
    with pytest.raises(error, match=complaint):
        player.act(GOOD | change)


def test_a_wrong_state_is_named_with_the_mend() -> None:
    player, one = Player(small(Unbounded((3,)))), np.zeros(3)
    _, state = player.act(one)
    with pytest.raises(ValueError, match="state is of 1 environments and the observation of 2"):
        player.act(np.zeros((2, 3)), state)
    with pytest.raises(TypeError, match="The state is a dict: give what act returned before, or None"):
        player.act(one, state._asdict())
    with pytest.raises(ValueError, match=r"ended is int64 of shape \[2\]: give one boolean for each of the 1"):
        state.forget([0, 1])


def test_a_player_follows_its_agent_to_another_device() -> None:
    """On torch's meta device, where nothing can be computed with what stayed behind."""
    agent = small(Unbounded((3,)), Bounded(-1, 1, (2,)))
    player = Player(agent, sample=True, bounds={"action": (-2.0, 2.0)})
    player.act(np.zeros(3, np.float32))
    agent.to("meta")
    with pytest.MonkeyPatch.context() as patch:  # there is no generator on that device
        patch.setattr(torch, "Generator", MetaGenerator)
        player._follow_agent()
    assert player.device.type == player.policy.generator.device.type == "meta"
    assert {end.device.type for end in player.actions.bounds["action"]} == {"meta"}


class MetaGenerator:
    def __init__(self, device: torch.device):
        self.device = device

    def manual_seed(self, seed: int) -> MetaGenerator:
        return self
