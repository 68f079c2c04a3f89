"""A batch that is not fit for learning is refused with words; a fit one gives away its context."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.objectives.value import TDLambdaEstimator

from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.modules.actor import ActionSpace
from dreamer_torchrl.modules.spaces import Discrete
from dreamer_torchrl.objectives.batch import check_steps, split_context
from tests.objectives.examples import golden, tiny_learner

FLOATS = ActionSpace(Unbounded((2,)))


def numbered(batch: int = 2, steps: int = 5) -> TensorDict:
    """Steps whose every entry is the number of the step."""
    number = torch.arange(steps).float().expand(batch, steps)
    entries = {key: number.unsqueeze(-1).repeat(1, 1, 2) for key in ("observation", "action", "belief", "state")}
    return TensorDict(entries, batch_size=[batch, steps])


def split(batch: TensorDict, context: int) -> TensorDict:
    return split_context(batch, context, FLOATS, ("belief", "state"))


def first_numbers(value: Tensor) -> list[float]:
    return value[0, :, 0].tolist()


def test_official_replay_context() -> None:
    """All entries lose the context; latents and action of the step before come along.

    The official function keeps a running carry in rows that follow on from the last batch. Here every row starts from
    what is stored, as the official code does in rows with ``consec`` 0.
    """
    table = golden("tables_replay_context.npz")
    batch = TensorDict({key: table[f"in/data/{key}"] for key in ("vector", "reward", "is_first", "action")}, [3, 5])
    batch["belief"], batch["state"] = table["in/data/dyn/deter"], table["in/data/dyn/stoch"]
    data = split(batch, context=1)
    for key in ("vector", "reward", "is_first"):
        assert data[key].equal(table[f"out/obs/{key}"])
    assert data["previous_action"].equal(table["out/prevact/action"])
    stored = table["in/data/consec"][:, 0] == 0
    assert stored.any()
    for ours, theirs in (("belief", "deter"), ("state", "stoch")):
        assert data["previous", ours][stored, 0].equal(table[f"out/carry/{theirs}"][stored])


def test_without_context_the_first_step_follows_on_nothing() -> None:
    data = split(numbered().exclude("belief", "state"), context=0)
    assert first_numbers(data["observation"]) == [0, 1, 2, 3, 4]
    assert first_numbers(data["previous_action"]) == [0, 0, 1, 2, 3]
    assert "previous" not in data


def test_previous_action_is_the_flat_one() -> None:
    """Keys in sorted order, classes one-hot."""
    space = ActionSpace(Composite(steer=Bounded(-1, 1, (2,)), gear=OneHot(3)))
    gear = torch.nn.functional.one_hot(torch.tensor([[2, 0, 1]]), 3)
    batch = TensorDict({"steer": torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]]), "gear": gear}, [1, 3])
    data = split_context(batch, 0, space, None)
    expected = torch.tensor([[[0, 0, 0, 0, 0], [0, 0, 1, 0.1, 0.2], [1, 0, 0, 0.3, 0.4]]])
    assert data["previous_action"].equal(expected)


@pytest.mark.parametrize(
    ("shape", "context"), [((5,), 1), ((2, 5, 1), 1), ((2, 2), 1), ((2, 3), 2), ((2, 1), 0)], ids=str
)
def test_wrong_batch_dimensions(shape: tuple[int, ...], context: int) -> None:
    """One dimension, three, or too few steps to have a return."""
    batch = TensorDict({key: torch.zeros(*shape, 2) for key in ("action", "belief", "state")}, shape)
    with pytest.raises(ValueError, match=r"must be \[B, context \+ T\]") as error:
        split(batch, context)
    assert str(list(shape)) in str(error.value)
    assert f"context {context} and T of at least 2" in str(error.value)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_class_that_does_not_exist_is_located(wrong: int) -> None:
    spaces = {"gear": Discrete((2, 4), (2,))}
    batch = TensorDict({"gear": torch.ones(2, 5, 2, dtype=torch.long)}, [2, 5])
    check_steps(batch, spaces)
    batch["gear"][1, 3, 1] = wrong
    with pytest.raises(ValueError, match=r"'gear' is outside its classes.* at row 1, step 3"):
        check_steps(batch, spaces)


def test_transitions_are_refused_by_the_name_of_their_adapter() -> None:
    """Root and next hold different rewards: trained on as they are, each would be one step off."""
    learner = tiny_learner()
    batch = example_batch(learner.agent, batch=2, length=4)
    for key in ("reward", "done", "terminated", "observation"):
        batch["next", key] = batch[key].roll(-1, 1)
    noise = learner.draw_noise(*batch.shape)
    for refuse in (learner.update, partial(learner.losses, noise=noise), learner.value_loss):
        with pytest.raises(ValueError, match=r"'next'.*one step off.*steps_from_transitions"):
            refuse(batch)


@pytest.mark.parametrize("name", ["world_model_loss", "actor_loss", "value_loss"])
def test_set_keys_says_what_is_wrong(name: str) -> None:
    loss = getattr(tiny_learner(), name)
    if name != "actor_loss":
        with pytest.raises(ValueError, match=r"reward=\('next', 'reward'\).*steps_from_transitions"):
            loss.set_keys(reward=("next", "reward"))
        with pytest.raises(ValueError, match=r"has no key 'rewrad'\. Did you mean 'reward'"):
            loss.set_keys(rewrad="reward")
    with pytest.raises(NotImplementedError, match=r"takes no value estimator.*return_lambda"):
        loss.make_value_estimator(TDLambdaEstimator)
