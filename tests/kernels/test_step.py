"""One step of acting by the kernel: the same as the modules' own, whatever the action space, and never old weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent, build_agent
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.kernels import attach
from tests.kernels.compilers import needs_compiler

pytestmark = needs_compiler

ODD = Size(belief=24, hidden=9, stochastic=5, classes=3, blocks=4, depth=2, units=11)
ACTIONS = {
    "floats": Bounded(-1, 1, (3,)),
    "classes": OneHot(4),
    "several": MultiOneHot((2, 3)),
    "mixed": Composite(gear=Categorical(3), steer=Bounded(-1, 1, (2,))),
}


def agent_for(action: TensorSpec, size: Size | str = ODD) -> Agent:
    """An agent whose weights are not those of the start, where heads give almost zero."""
    torch.manual_seed(0)
    agent = build_agent(Composite(observation=Unbounded((3,))), action, size, actor_unimix=0.01)
    for parameter in agent.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return agent


def played(policy: Policy, native: bool, rows: int, exploration: ExplorationType) -> TensorDictBase:
    """Three steps from given observations and random numbers; an episode starts in the middle in every other row."""
    attach(policy, native)
    policy.generator = torch.Generator().manual_seed(1)
    observations = torch.randn(3, rows, 3, generator=torch.Generator().manual_seed(2))
    data = TensorDict(batch_size=[rows])
    with set_exploration_type(exploration):
        for step, observation in enumerate(observations):
            data["observation"] = observation
            data["is_init"] = ((torch.arange(rows) + step) % 2 == 0).unsqueeze(1)
            data = policy(data)
    return data


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("action", ACTIONS)
def test_it_is_the_step_of_the_modules(action: str, rows: int) -> None:
    policy = agent_for(ACTIONS[action]).policy
    expected, found = (played(policy, native, rows, ExplorationType.RANDOM) for native in (False, True))
    assert set(found.keys(True, True)) == set(expected.keys(True, True))
    for key, value in expected.items(True, True):
        assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_threads_change_nothing(threads: Callable[[int], None]) -> None:
    policy, results = agent_for(OneHot(4)).policy, []
    for count in (1, 3):
        threads(count)
        results.append(played(policy, True, 40, ExplorationType.RANDOM))
    assert all(results[0][key].equal(value) for key, value in results[1].items(True, True))


def test_weights_are_those_of_now() -> None:
    """Changed in place, given other memory, or loaded: the next step knows."""
    agent = agent_for(OneHot(4))
    policy, other = agent.policy, agent_for(OneHot(4))
    played(policy, True, 2, ExplorationType.RANDOM)
    with torch.no_grad():
        agent.rssm.core.belief_in.linear.weight.mul_(2)
    agent.actor.mlp[0].linear.weight.data = agent.actor.mlp[0].linear.weight.data * 3
    expected, found = (played(policy, native, 2, ExplorationType.RANDOM) for native in (False, True))
    assert_close(found["belief"], expected["belief"], rtol=1e-4, atol=1e-5)
    assert found["action"].equal(expected["action"])
    agent.load_state_dict(other.state_dict())
    expected, found = (played(each, True, 2, ExplorationType.RANDOM) for each in (other.policy, policy))
    assert found["belief"].equal(expected["belief"])


def test_a_copy_is_on_its_own() -> None:
    policy = agent_for(OneHot(4)).policy
    before = played(policy, True, 2, ExplorationType.RANDOM)
    for copied in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy.rssm))):
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
    assert played(policy, True, 2, ExplorationType.RANDOM)["belief"].equal(before["belief"])


@pytest.mark.parametrize("key", ["belief", "state", "previous_action"])
def test_latents_of_another_agent_are_refused(key: str) -> None:
    """The kernel would read what lies behind them in memory."""
    policy = agent_for(ACTIONS["floats"]).policy
    data = played(policy, True, 2, ExplorationType.RANDOM)
    data[key] = data[key][..., :-1]
    with set_exploration_type(ExplorationType.RANDOM), pytest.raises(RuntimeError):
        policy(data)


@torch.no_grad()
def test_threads_may_act_with_one_agent() -> None:
    """Kernels run beside one another, on arguments of their own."""
    policy = agent_for(ACTIONS["floats"], "nano").policy
    attach(policy, True)
    rssm, step = policy.rssm, partial(policy.rssm.act, policy.actor)
    inputs = []
    for rows in (1, 3, 8, 16):
        encoded = torch.randn(rows, policy.encoder.out_features)
        noise = torch.rand(rows, rssm.stochastic), torch.randn(rows, 3)
        inputs.append(
            (encoded, torch.zeros(rows, 3), torch.zeros(rows, 1, dtype=torch.bool), *rssm.initial(rows), *noise)
        )
    expected = [step(*given) for given in inputs]

    def repeat(index: int) -> bool:
        with torch.no_grad():
            again = (step(*inputs[index]) for _ in range(50))
            return all(torch.equal(*pair) for outputs in again for pair in zip(outputs, expected[index], strict=True))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(repeat, range(4)))
