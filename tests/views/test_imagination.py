"""Dreams against the modules' own steps and the objective's own numbers, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from dreamer_torchrl import build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.learner import Hyperparameters, Learner, example_batch
from dreamer_torchrl.modules import Continuous, Discrete, Image, symlog
from dreamer_torchrl.modules.rssm import features_of
from dreamer_torchrl.views.imagination import (
    Beliefs,
    Dream,
    deviation,
    dream,
    foresee,
    imagined,
    observe,
    prediction_error,
    readable,
    rollout,
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


def awake(agent: Agent) -> Agent:
    """With heads that say something: those of reward and value start at zero."""
    for head in (agent.reward, agent.value):
        nn.init.normal_(head.logits.weight, std=0.1)
    return agent.eval()


def episode(agent: Agent, length: int = STEPS) -> TensorDict:
    """One episode of noise ``[length]`` that terminates."""
    steps = example_batch(agent, batch=1, length=length - 1)[0].clone()
    steps["is_init"], steps["terminated"] = torch.zeros(2, length, 1, dtype=torch.bool)
    steps["is_init"][0], steps["terminated"][-1] = True, True
    return steps


def numbers(beliefs: Beliefs) -> list[Tensor]:
    return [*beliefs.observation.values(), beliefs.reward, beliefs.continuation, beliefs.value, beliefs.entropy]


def all_numbers(seen: Dream) -> list[Tensor]:
    own = [*seen.observation.values(), seen.reward, seen.terminated, seen.kl]
    return own + numbers(seen.reconstruction) + numbers(seen.open_loop)


def assert_equal(one: list[Tensor], other: list[Tensor], where: slice = slice(None)) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a[where], b[where], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", [vector_agent, mixed_agent])
def test_with_open_eyes_all_along_the_open_loop_is_the_reconstruction(make: Callable[[], Agent]) -> None:
    agent = awake(make())
    steps = episode(agent)
    seen = dream(agent, steps, context=STEPS)
    assert_equal(numbers(seen.open_loop), numbers(seen.reconstruction))
    half = dream(agent, steps, context=5)
    assert_equal(numbers(half.open_loop), numbers(half.reconstruction), slice(0, 5))
    assert_equal(numbers(half.reconstruction), numbers(seen.reconstruction))
    later = zip(numbers(half.open_loop), numbers(half.reconstruction), strict=True)
    assert sum(not torch.equal(a[5:], b[5:]) for a, b in later) >= 5


@pytest.mark.parametrize("make", [vector_agent, mixed_agent])
def test_what_is_recorded_is_shown(make: Callable[[], Agent]) -> None:
    agent = make()
    steps = episode(agent)
    seen = dream(agent, steps, context=3)
    assert len(seen) == STEPS and (seen.start, seen.context, seen.last_seen) == (0, 3, 2)
    assert torch.equal(seen.reward, steps["reward"].squeeze(1))
    assert seen.terminated.tolist() == [0.0] * (STEPS - 1) + [1.0]
    for key, space in agent.spaces.items():
        assert torch.equal(seen.observation[key], readable(space, steps[key]))
        expected = deviation(space, seen.open_loop.observation[key], seen.observation[key])
        assert torch.equal(seen.difference[key], expected) and expected.any()


def test_dreamt_steps_are_the_prior_steps_of_the_model() -> None:
    """Along the recorded actions, from the last latent that saw anything."""
    agent = awake(mixed_agent())
    steps = episode(agent)
    latents = observe(agent, steps, torch.Generator().manual_seed(1))
    noise = state_noise(agent, 1, 4, torch.Generator().manual_seed(2))
    features = foresee(agent, latents, [5], latents.action[None, 5:9], noise)
    flat = agent.action_space.flatten({key: steps[key] for key in agent.action_space.keys})
    belief, state = latents.belief[5:6], latents.state[5:6]
    with torch.no_grad():
        for ahead in range(4):
            belief, state, _ = agent.rssm.imagine(belief, state, flat[5 + ahead : 6 + ahead], noise[:, ahead])
            torch.testing.assert_close(features[:, ahead + 1], features_of(belief, state))
    seen = dream(agent, steps, context=6, seed=3)
    generator = torch.Generator().manual_seed(3)
    latents = observe(agent, steps, generator)
    ahead = foresee(agent, latents, [5], latents.action[None, 5:-1], state_noise(agent, 1, STEPS - 6, generator))
    with torch.no_grad():
        torch.testing.assert_close(seen.open_loop.reward[6:], agent.reward(ahead[0, 1:])[1].squeeze(1))


def test_the_policy_acts_in_the_free_dream() -> None:
    """Each action is drawn from the actor at the dream's own latent."""
    agent = awake(mixed_agent())
    latents = observe(agent, episode(agent), torch.Generator().manual_seed(1))
    features, actions = rollout(agent, latents.belief[2], latents.state[2], 4, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    noise = state_noise(agent, 1, 4, generator)
    action_noise = agent.action_space.noise(4, generator=generator)
    belief, state = latents.belief[2:3], latents.state[2:3]
    with torch.no_grad():
        for ahead in range(4):
            policy = agent.actor.distribution(agent.actor(features_of(belief, state)))
            action = policy.sample(action_noise[ahead : ahead + 1])
            torch.testing.assert_close(actions[ahead], action[0])
            belief, state, _ = agent.rssm.imagine(belief, state, action, noise[:, ahead])
            torch.testing.assert_close(features[ahead + 1], features_of(belief, state)[0])


def test_numbers_are_those_of_the_objective() -> None:
    """KL and errors of the reconstruction, for the same steps and the same noise."""
    agent = awake(vector_agent())
    steps = episode(agent)
    learner = Learner(agent, Hyperparameters(context=0, free_nats=0.0, imagination_length=2))
    noise = learner.draw_noise(1, STEPS)
    noise["posterior"] = state_noise(agent, 1, STEPS, torch.Generator().manual_seed(4))
    losses, data = learner.losses(steps.unsqueeze(0), noise)
    seen = dream(agent, steps, seed=4)
    torch.testing.assert_close(seen.kl.mean(), losses["loss_dynamics"])
    squashed = symlog(seen.reconstruction.observation["observation"]) - symlog(steps["observation"])
    torch.testing.assert_close(squashed.square().sum(1).mean(), losses["loss_reconstruction"])
    for own, key in (("reward", "predicted_reward"), ("continuation", "continuation")):
        torch.testing.assert_close(
            getattr(seen.reconstruction, own), data[key].detach().flatten(), rtol=1e-4, atol=1e-5
        )
    value = data["imagination", "state_value"][0, :, 0, 0]  # of the starts of the dreams
    torch.testing.assert_close(seen.reconstruction.value, value.detach(), rtol=1e-4, atol=1e-5)


def test_what_came_before_the_start_is_known() -> None:
    """A later start shows less of the same posterior."""
    agent = awake(vector_agent())
    steps = episode(agent)
    whole, part = dream(agent, steps), dream(agent, steps, context=5, start=4)
    assert (len(part), part.start, part.last_seen) == (STEPS - 4, 4, 8)
    assert_equal(numbers(part.reconstruction), [value[4:] for value in numbers(whole.reconstruction)])
    assert torch.equal(part.kl, whole.kl[4:]) and torch.equal(part.reward, whole.reward[4:])


@pytest.mark.parametrize("make", [vector_agent, mixed_agent])
def test_where_there_is_no_environment_nothing_is_known_of_one(make: Callable[[], Agent]) -> None:
    agent = awake(make())
    steps = episode(agent)
    free, seen = imagined(agent, steps, 20, context=4, start=2), dream(agent, steps, context=4, start=2)
    assert free.imagined and len(free) == 24
    assert_equal(all_numbers(free), all_numbers(seen), slice(0, 4))
    assert all(value[4:].isfinite().all() for value in numbers(free.open_loop))
    unknown = [*all_numbers(free)[: -len(numbers(free.open_loop))], *free.difference.values()]
    assert all(value[4:].isnan().all() for value in unknown)


def test_it_draws_from_a_source_of_its_own_and_changes_nothing() -> None:
    agent = awake(vector_agent())
    steps = episode(agent)
    before, weights = torch.get_rng_state(), [parameter.clone() for parameter in agent.parameters()]
    recorded = steps.clone()
    runs = [all_numbers(dream(agent, steps, seed=seed)) for seed in (1, 1, 2)]
    free = [all_numbers(imagined(agent, steps, 5, seed=seed)) for seed in (1, 1)]
    errors = [prediction_error(agent, steps, seed=seed) for seed in (1, 1)]
    assert_equal(runs[0], runs[1])
    assert_equal(free[0], free[1])
    assert errors[0] == errors[1]
    assert any(not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(now, then) for now, then in zip(agent.parameters(), weights, strict=True))
    assert (steps == recorded).all() and all(parameter.grad is None for parameter in agent.parameters())


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


def test_a_model_that_knows_makes_no_error() -> None:
    """One step ahead of the truth, teacher and dream agree: with a decoder that says 0 of an observation that is 0."""
    agent = vector_agent()
    for head in agent.decoder.vector_heads:
        nn.init.zeros_(head.weight)
    steps = episode(agent)
    steps["observation"] = torch.zeros(STEPS, 3)
    steps["reward"] = torch.zeros(STEPS, 1)
    error = prediction_error(agent, steps)
    assert error.model == {"reward": [0.0, 0.0], "observation": [0.0, 0.0]} and error.horizons == (1, 5)


def test_numbers_as_a_reader_wants_them() -> None:
    assert readable(Image(1, 2, 1), torch.tensor([[[0], [255]]], dtype=torch.uint8)).flatten().tolist() == [0, 1]
    first = readable(Image(1, 2, 3, channels_first=True), torch.zeros(5, 3, 1, 2, dtype=torch.uint8))
    assert first.shape == (5, 1, 2, 3)
    assert readable(Continuous((2, 2)), torch.eye(2)).tolist() == [1, 0, 0, 1]
    assert readable(Discrete((3,), (), low=4), torch.tensor([4, 6])).tolist() == [[4], [6]]
    one_hot = Discrete((3, 2), (5,), torch.bool, one_hot=True)
    assert readable(one_hot, torch.tensor([0, 0, 1, 1, 0]).bool()).tolist() == [2, 0]


def test_classes_have_no_distance() -> None:
    predicted, seen = torch.tensor([[0.0, 2], [1, torch.nan]]), torch.tensor([[2.0, 2], [0, 1]])
    assert deviation(Discrete((3, 3), (2,)), predicted, seen).nan_to_num(-1).tolist() == [[1, 0], [1, -1]]
    assert deviation(Continuous((2,)), predicted, seen).nan_to_num(-9).tolist() == [[-2, 0], [1, -9]]


@pytest.mark.parametrize(("context", "start"), [(0, 0), (13, 0), (5, 8), (5, -1)])
def test_a_part_that_is_not_there(context: int, start: int) -> None:
    agent = vector_agent()
    for work in (dream, lambda *given: imagined(given[0], given[1], 3, *given[2:])):
        with pytest.raises(ValueError, match=f"The episode has 12 steps: start {start} and context {context} need"):
            work(agent, episode(agent), context, start)


def test_steps_that_are_no_episode() -> None:
    agent = vector_agent()
    steps = episode(agent)
    for wrong in (steps[1:], torch.cat([steps, steps]), steps.unsqueeze(0)):
        with pytest.raises(ValueError, match="the first steps"):
            dream(agent, wrong, context=1)
    with pytest.raises(KeyError, match="A dream needs observation"):
        dream(agent, steps.exclude("observation"))
