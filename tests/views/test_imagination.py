"""Open-loop prediction against the modules' own steps and the objective's own numbers, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from dreamer_torchrl import build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.learner import Hyperparameters, Learner, example_batch
from dreamer_torchrl.modules import Continuous, Discrete, Image, symlog
from dreamer_torchrl.views.imagination import (
    OpenLoop,
    Predictions,
    deviation,
    observe,
    open_loop,
    predict,
    prediction_error,
    readable,
    state_noise,
)
from tests.agents.acting_examples import TINY

STEPS = 12


def vector_agent() -> Agent:
    return build_agent(Composite(observation=Unbounded((3,))), OneHot(2), TINY)


def mixed_agent() -> Agent:
    """Floats, classes and a picture, nested; two actions at a time."""
    inside = Composite(kind=Categorical(3), level=Unbounded((2,)))
    picture = Bounded(0, 255, (3, 48, 48), dtype=torch.uint8)
    actions = Composite(gear=Categorical(3), wheel=Bounded(-1, 1, (2,)))
    return build_agent(Composite(inside=inside, picture=picture), actions, TINY)


def trained(agent: Agent) -> Agent:
    """With heads that say something: those of reward and value start at zero."""
    for head in (agent.reward, agent.value):
        nn.init.normal_(head.logits.weight, std=0.1)
    return agent.eval()


def episode(agent: Agent, length: int = STEPS) -> TensorDict:
    steps = example_batch(agent, batch=1, length=length - 1)[0].clone()
    steps["is_init"], steps["terminated"] = torch.zeros(2, length, 1, dtype=torch.bool)
    steps["is_init"][0], steps["terminated"][-1] = True, True
    return steps


def numbers(outputs: Predictions) -> list[Tensor]:
    return [*outputs.observation.values(), outputs.reward, outputs.continuation, outputs.value, outputs.entropy]


def all_numbers(loop: OpenLoop) -> list[Tensor]:
    own = [*loop.observation.values(), loop.reward, loop.terminated, loop.kl]
    return own + numbers(loop.reconstruction) + numbers(loop.prediction)


def first(values: list[Tensor], count: int) -> list[Tensor]:
    return [value[:count] for value in values]


@pytest.mark.parametrize("make", [vector_agent, mixed_agent])
def test_the_open_loop_is_the_reconstruction_as_long_as_it_sees(make: Callable[[], Agent]) -> None:
    """What was recorded is given back; a later start shows less of the same posterior."""
    agent = trained(make())
    steps = episode(agent)
    loop, half = open_loop(agent, steps, context=STEPS), open_loop(agent, steps, context=5)
    assert_close(numbers(loop.prediction), numbers(loop.reconstruction))
    assert_close(first(numbers(half.prediction), 5), first(numbers(half.reconstruction), 5))
    later = zip(numbers(half.prediction), numbers(half.reconstruction), strict=True)
    assert sum(not torch.allclose(a[5:], b[5:]) for a, b in later) >= 5
    assert torch.equal(half.reward, steps["reward"].squeeze(1)) and half.terminated.tolist() == [0.0] * 11 + [1.0]
    for key, space in agent.spaces.items():
        assert torch.equal(half.observation[key], readable(space, steps[key]))
        assert_close(half.error[key], deviation(space, half.prediction.observation[key], half.observation[key]))
    part = open_loop(agent, steps, context=5, start=4)
    assert (len(part), part.start) == (STEPS - 4, 4)
    assert_close(numbers(part.reconstruction), [value[4:] for value in numbers(half.reconstruction)])
    assert_close(part.kl, half.kl[4:])


def test_predicted_steps_are_the_prior_steps_of_the_model() -> None:
    agent = trained(mixed_agent())
    steps = episode(agent)
    posterior = observe(agent, steps, torch.Generator().manual_seed(1))
    noise = state_noise(agent, 1, 4, torch.Generator().manual_seed(2))
    features = predict(agent, posterior, torch.tensor([5]), posterior.action[None, 5:9], noise)
    flat = agent.action_space.flatten({key: steps[key] for key in agent.action_space.keys})
    given = posterior.belief[5:6], posterior.state[5:6]
    with torch.no_grad():
        for ahead in range(4):
            given = agent.rssm.imagine(*given, flat[5 + ahead : 6 + ahead], noise[:, ahead])[:2]
            assert_close(features[:, ahead + 1], agent.rssm.latent.features(*given))


@pytest.mark.parametrize("make", [vector_agent, mixed_agent])
def test_a_free_imagination_knows_no_truth_after_its_context(make: Callable[[], Agent]) -> None:
    agent = trained(make())
    steps = episode(agent)
    free, seen = open_loop(agent, steps, 4, 2, imagine=20), open_loop(agent, steps, 4, 2)
    assert free.imagined and len(free) == 24 and len(numbers(free.prediction)[0]) == 24
    assert_close(first(all_numbers(free), 4), first(all_numbers(seen), 4), rtol=1e-4, atol=1e-5)
    recorded = [*all_numbers(free)[: -len(numbers(free.prediction))], *free.error.values()]
    assert {len(value) for value in recorded} == {4}


def test_numbers_are_those_of_the_objective() -> None:
    """KL and errors of the reconstruction, for the same steps and the same noise."""
    agent = trained(vector_agent())
    steps = episode(agent)
    learner = Learner(agent, Hyperparameters(context=0, free_nats=0.0, imagination_length=2))
    noise = learner.draw_noise(1, STEPS)
    noise["posterior"] = state_noise(agent, 1, STEPS, torch.Generator().manual_seed(4))
    losses, data = learner.losses(steps.unsqueeze(0), noise)
    loop = open_loop(agent, steps, seed=4)
    assert_close(loop.kl.mean(), losses["loss_dynamics"])
    squashed = symlog(loop.reconstruction.observation["observation"]) - symlog(steps["observation"])
    assert_close(squashed.square().sum(1).mean(), losses["loss_reconstruction"])
    for own, key in (("reward", "predicted_reward"), ("continuation", "continuation")):
        assert_close(getattr(loop.reconstruction, own), data[key].detach().flatten(), rtol=1e-4, atol=1e-5)


def test_errors_by_hand() -> None:
    """A reward head that is new predicts 0; the other guess is that everything stays as it was seen last."""
    agent = vector_agent()
    steps = episode(agent, 6)
    steps["reward"] = torch.tensor([0.0, 1, 3, 6, 10, 15]).unsqueeze(1)
    steps["observation"] = torch.tensor([[0.0, 5, 0], [2, 5, 0], [0, 5, 0], [2, 5, 0], [0, 5, 0], [2, 5, 0]])
    error = prediction_error(agent, steps, context=2, horizons=(1, 3, 5))
    assert error.horizons == (1, 3)  # from step 1 on, five steps ahead is after the end
    assert error.model["reward"] == pytest.approx([(3 + 6 + 10 + 15) / 4, (10 + 15) / 2], abs=1e-6)
    assert error.unchanged["reward"] == pytest.approx([(2 + 3 + 4 + 5) / 4, (9 + 12) / 2])
    spread = (6 / 5) ** 0.5  # of the first number; the others never change
    assert error.unchanged["observation"] == pytest.approx([2 / spread / 3, 2 / spread / 3])
    assert prediction_error(agent, steps, context=5, horizons=(2,)).horizons == ()
    for head in agent.decoder.vector_heads:  # a decoder that says 0 of an observation that is 0
        nn.init.zeros_(head.weight)
    steps["observation"], steps["reward"] = torch.zeros(6, 3), torch.zeros(6, 1)
    assert prediction_error(agent, steps, context=2).model == {"reward": [0.0], "observation": [0.0]}


def test_observations_in_their_own_units() -> None:
    assert readable(Image(1, 2, 1), torch.tensor([[[0], [255]]], dtype=torch.uint8)).flatten().tolist() == [0, 1]
    pixels = readable(Image(1, 2, 3, channels_first=True), torch.zeros(5, 3, 1, 2, dtype=torch.uint8))
    assert pixels.shape == (5, 1, 2, 3)
    assert readable(Continuous((2, 2)), torch.eye(2)).tolist() == [1, 0, 0, 1]
    assert readable(Discrete((3,), (), low=4), torch.tensor([4, 6])).tolist() == [[4], [6]]
    one_hot = Discrete((3, 2), (5,), torch.bool, one_hot=True)
    assert readable(one_hot, torch.tensor([0, 0, 1, 1, 0]).bool()).tolist() == [2, 0]
    predicted, seen = torch.tensor([[0.0, 2]]), torch.tensor([[2.0, 2]])
    assert deviation(Discrete((3, 3), (2,)), predicted, seen).tolist() == [[1, 0]]  # classes have no distance
    assert deviation(Continuous((2,)), predicted, seen).tolist() == [[-2, 0]]


def test_steps_that_cannot_be_predicted_are_refused() -> None:
    agent = vector_agent()
    steps = episode(agent)
    for context, start in ((0, 0), (13, 0), (5, 8), (5, -1)):
        with pytest.raises(ValueError, match=f"The episode has 12 steps: start {start} and context {context} need"):
            open_loop(agent, steps, context, start)
    for wrong in (steps[1:], torch.cat([steps, steps]), steps.unsqueeze(0)):
        with pytest.raises(ValueError, match="the first steps"):
            open_loop(agent, wrong, context=1)
    with pytest.raises(KeyError, match="prediction needs observation"):
        open_loop(agent, steps.exclude("observation"))
