"""An agent is built from specs and a size, and what cannot be built is refused with a mend."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Binary, Bounded, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs import (
    ActionScaling,
    Compose,
    EnvBase,
    GymEnv,
    InitTracker,
    RenameTransform,
    SerialEnv,
    TransformedEnv,
    check_env_specs,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl import Learner, Player, Size, build_agent
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.modules.spaces import Space
from tests.objectives.examples import TINY

VECTOR = Composite(observation=Unbounded((24,)))
IMAGE = Composite(pixels=Bounded(0, 255, (64, 64, 3), dtype=torch.uint8))
MOVE = Bounded(-1, 1, (6,))
PRESS = OneHot(6)


class Drone(EnvBase):
    """Sees a ``state``, which is the agent's own word too, and perhaps an ``observation`` beside it."""

    def __init__(self, **observed: TensorSpec):
        super().__init__()
        self.observation_spec = Composite(state=Unbounded((3,)), **observed)
        self.action_spec = Bounded(-1, 1, (2,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        return self.observation_spec.rand()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.observation_spec.rand().update({"reward": torch.ones(1), "done": torch.zeros(1, dtype=torch.bool)})

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(0 if seed is None else seed)


@pytest.mark.parametrize(
    ("observed", "action", "size", "parameters"),
    [(IMAGE, PRESS, "size1m", 686_456), (IMAGE, PRESS, "size12m", 10_492_616)],
)
def test_parameter_counts_are_the_official_ones(
    observed: Composite, action: TensorSpec, size: str, parameters: int
) -> None:
    """Those of floats stand in the example of `build_agent`."""
    agent = build_agent(observed, action, size)
    assert sum(parameter.numel() for parameter in agent.parameters()) == parameters


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=re.escape("Unknown size 'size2m': there are nano, size1m, size12m")):
        build_agent(VECTOR, MOVE, "size2m")
    with pytest.raises(ValueError, match="does not split into 4 blocks"):
        build_agent(VECTOR, MOVE, Size(belief=18, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8))


@pytest.mark.parametrize("key", ["keys", "observation.image"])
def test_a_key_may_have_any_name(key: str) -> None:
    """Also one that means something to ``torch.nn.ModuleDict``, or that has a dot as in LeRobot's data."""
    agent = build_agent(Composite({key: Unbounded((3,))}), Composite({key: Bounded(-1, 1, (2,))}), TINY)
    assert (list(agent.spaces), list(agent.action_space.spaces)) == ([key], [key])


@pytest.mark.parametrize(
    ("observed", "action", "message"),
    [
        (Composite(count=Unbounded((), dtype=torch.int64)), MOVE, "'count' has unsupported spec.*cast it to float32"),
        (Composite(grey=Bounded(0, 255, (64, 64), dtype=torch.uint8)), MOVE, "'grey'.*channel axis"),
        (
            Composite(eye=Bounded(0, 255, (50, 64, 3), dtype=torch.uint8)),
            MOVE,
            "'eye' has height 50.*between 48 and 256",
        ),
        (Composite(is_init=Binary(1)), MOVE, "no observation key"),
        (VECTOR, Bounded(-2, 2, (1,)), "'action' has bounds -2.0 to 2.0.*ActionScaling"),
        (VECTOR, Composite(turn=Bounded(0, 1, (1,))), "'turn' has bounds 0.0 to 1.0.*ActionScaling"),
        (VECTOR, Bounded(0, 255, (64, 64, 3), dtype=torch.uint8), "'action' has an image spec"),
        (VECTOR, Unbounded((1,), dtype=torch.int64), "'action' has unsupported spec.*Categorical or OneHot"),
    ],
)
def test_an_unsupported_spec_is_named_with_a_mend(observed: Composite, action: TensorSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_agent(observed, action, TINY)


@pytest.mark.parametrize("observed", [{}, {"observation": Unbounded((2,))}], ids=["alone", "beside_observation"])
def test_an_observation_named_state_is_refused_and_the_mend_works(observed: dict[str, TensorSpec]) -> None:
    env = Drone(**observed)
    with pytest.raises(ValueError, match=r"an observation 'state'.*append RenameTransform") as refused:
        build_agent(env.observation_spec, env.action_spec, TINY)
    (mend,) = re.findall(r"RenameTransform\(.*\)", str(refused.value))

    env = TransformedEnv(env, Compose(eval(mend, {"RenameTransform": RenameTransform}), InitTracker()))
    check_env_specs(env)
    agent = build_agent(env.observation_spec, env.action_spec, TINY)
    assert len(agent.spaces) == 1 + len(observed)
    steps = env.rollout(3, agent.policy)
    assert steps["state"].shape == (3, TINY.stochastic, TINY.classes)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_one_environment_and_several_give_the_same_agent(name: str) -> None:
    transform = ActionScaling if name == "Pendulum-v1" else InitTracker
    one = TransformedEnv(GymEnv(name), transform())
    several = TransformedEnv(SerialEnv(3, lambda: GymEnv(name)), transform())
    agent = build_agent(one.observation_spec, one.action_spec, TINY)
    for specs in (
        (several.observation_spec_unbatched, several.action_spec_unbatched),
        (several.observation_spec, several.action_spec),
    ):
        same = build_agent(*specs, TINY)
        assert (same.spaces, same.action_space.spaces) == (agent.spaces, agent.action_space.spaces)


@pytest.mark.parametrize(("unimix", "least"), [(0.0, 0.0), (0.01, 0.01 / 6)])
def test_actor_unimix_is_the_least_that_each_action_gets(unimix: float, least: float) -> None:
    agent = build_agent(VECTOR, PRESS, TINY, actor_unimix=unimix)
    certain = torch.tensor([200.0, 0, 0, 0, 0, 0])
    probs = agent.actor.distribution(certain).mean
    assert probs.min().item() == pytest.approx(least)


def test_the_policy_is_one_object_whose_generator_can_be_set() -> None:
    agent = build_agent(Composite(observation=Unbounded((3,))), OneHot(2), TINY)
    assert agent.policy is agent.policy
    assert not any(name.startswith("policy") for name in agent.state_dict())
    seen = TensorDict({"observation": torch.zeros(50, 3), "is_init": torch.ones(50, 1, dtype=torch.bool)}, [50])
    drawn = []
    with set_exploration_type(ExplorationType.RANDOM):
        for _ in range(2):
            agent.policy.generator = torch.Generator().manual_seed(0)
            drawn.append(agent.policy(seen.clone())["action"])
    assert drawn[0].equal(drawn[1])
    twin = copy.deepcopy(agent)
    assert twin.policy.actor is twin.actor is not agent.actor


class Sum(nn.Module):
    """Reads one of two observations, and is as plain as an encoder may be."""

    in_keys, out_features = ["objects"], 7

    def __init__(self, spaces: Mapping[NestedKey, Space]) -> None:
        super().__init__()
        self.given = set(spaces)
        self.weight = nn.Parameter(torch.full((spaces["objects"].shape[-1], 7), 0.01))

    def forward(self, objects: torch.Tensor) -> torch.Tensor:
        return (objects @ self.weight).sum(-2)


OBJECTS = Composite(objects=Unbounded((5, 3)), clock=Unbounded((1,)))


def test_an_encoder_of_ones_own_learns_and_acts() -> None:
    """The RSSM has its width, an update moves its weights, and the policy asks for its key alone."""
    agent = build_agent(OBJECTS, MOVE, TINY, encoder=Sum)
    assert agent.encoder.given == {"objects", "clock"}
    assert agent.rssm.posterior.linear.weight.shape[1] == TINY.belief + 7
    learner, before = Learner(agent), agent.encoder.weight.detach().clone()
    for seed in range(2):  # the learning rate of the first update is zero
        learner.update(example_batch(agent, batch=2, length=4, seed=seed))
    assert (agent.encoder.weight != before).all()
    assert agent.policy.in_keys[0] == "objects"
    action, _ = Player(agent).act({"objects": np.ones((5, 3), np.float32)})
    assert action.shape == (6,)


@pytest.mark.parametrize("name", ["in_keys", "out_features"])
def test_an_encoder_that_does_not_say_what_it_reads_or_gives_is_refused(name: str) -> None:
    class Silent(nn.Module):
        def __init__(self, spaces: Mapping[NestedKey, Space]) -> None:
            super().__init__()
            for other in {"in_keys", "out_features"} - {name}:
                setattr(self, other, [*spaces])

    with pytest.raises(TypeError, match=f"The encoder Silent has no {name}: give it in_keys"):
        build_agent(OBJECTS, MOVE, TINY, encoder=Silent)
