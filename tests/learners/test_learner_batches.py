"""What an update reads of a batch: its context, and nothing of a batch that is not as it should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data import Composite, OneHot, Unbounded

from dreamer_torchrl import build_agent
from dreamer_torchrl.learners.learner import example_batch
from tests.learners.learner_examples import learner_for, losses_of, weights
from tests.objectives.examples import TINY

# Context


def test_state_as_one_hot_and_as_indices_is_the_same() -> None:
    learner, same = learner_for(), learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    one_hot = batch.clone().update({"state": learner.agent.rssm.one_hot(batch["state"])})
    metrics, latents = learner.update(batch)
    same_metrics, same_latents = same.update(one_hot)
    assert (metrics == same_metrics).all()
    assert (latents == same_latents).all()
    assert (weights(learner.agent) == weights(same.agent)).all()


def test_the_contexts_action_matters_and_nothing_else_of_it() -> None:
    batch = example_batch(learner_for().agent, batch=2, length=4)
    batch["is_init"][:] = False
    other = batch.clone()
    for key in ("observation", "reward"):
        other[key][:, 0] += 1
    for key in ("is_init", "terminated", "done"):
        other[key][:, 0] ^= True
    assert (losses_of(batch) == losses_of(other)).all()
    other["action"][:, 0] ^= True
    assert not (losses_of(batch) == losses_of(other)).all()


def test_a_missing_entry_is_named_with_what_is_there() -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    for key in batch.keys():  # noqa: SIM118
        others = ", ".join(sorted(set(batch.keys()) - {key}))
        with pytest.raises(KeyError, match=f"needs {key}, but the data holds {others}"):
            learner.update(batch.exclude(key))


@pytest.mark.parametrize(
    ("key", "bend", "message"),
    [
        ("observation", lambda value: value[..., :2], r"'observation' has shape \[2\] per step.* for \[3\]"),
        ("action", lambda value: value[..., :1], r"'action' has shape \[1\] per step.* for \[2\]"),
        ("action", lambda value: value.int().argmax(-1), r"'action' has shape \[\] per step.* for \[2\]"),
        ("reward", lambda value: value.squeeze(-1), r"'reward' has shape \[\] per step.* for \[1\]"),
        ("done", lambda value: value.squeeze(-1), r"'done' has shape \[\] per step.* for \[1\]"),
        ("belief", lambda value: value[..., :8], r"'belief' has shape \[8\] per step.* for \[16\]"),
        ("state", lambda value: value[..., :3], r"'state' has shape \[3\] per step.* for \[4\]"),
        ("done", lambda value: value.to(torch.uint8), "'done' has dtype torch.uint8.*bool"),
    ],
)
def test_an_entry_of_the_wrong_form_is_named(key: NestedKey, bend: Callable[[Tensor], Tensor], message: str) -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    with pytest.raises(ValueError, match=message):
        learner.update(batch.clone().update({key: bend(batch[key])}))


@pytest.mark.parametrize("key", ["features", "noise", "previous", "priority_weight"])
def test_an_observation_may_not_have_a_name_that_the_update_writes(key: str) -> None:
    """Or else it is overwritten on the way."""
    with pytest.raises(ValueError, match=f"observation {key!r}.*RenameTransform"):
        build_agent(Composite({key: Unbounded((3,))}), OneHot(2), TINY)
