"""Heads predict a number or a probability, from features in one part or in several."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical

from dreamer_torchrl.modules import ActionSpace, Actor, ContinueHead, TwoHotHead, symexp

SPACE = ActionSpace(Composite(steer=Bounded(-1, 1, (2,)), gear=Categorical(3), tool=MultiCategorical([2, 4])))


def scrambled(head: nn.Module) -> nn.Module:
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize("layers", [1, 3])
def test_a_two_hot_head_predicts_the_mean_of_its_bins(layers: int) -> None:
    head, features = TwoHotHead(6, units=8, layers=layers), torch.randn(2, 5, 6)
    assert head(features)[1].equal(torch.zeros(2, 5, 1))
    assert len([key for key, _ in head.named_parameters()]) == 3 * layers + 2
    logits, prediction = scrambled(head).double()(features.double())
    assert (logits.shape, prediction.shape) == ((2, 5, 255), (2, 5, 1))
    half = symexp(torch.linspace(-20, 0, 128).double())
    bins = torch.cat([half, -half[:-1].flip(0)])
    assert_close(prediction, (logits.softmax(-1) * bins).sum(-1, keepdim=True), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("head", [TwoHotHead(6, units=8, layers=1), ContinueHead(6, units=8)], ids=["number", "yes_no"])
def test_heads_compute_in_bfloat16_and_give_float32(head: nn.Module) -> None:
    features = torch.randn(7, 6)
    low, high = scrambled(head)(features.bfloat16()), head(features)
    assert {x.dtype for x in low} == {torch.float32}
    assert_close(low[0], high[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "module",
    [TwoHotHead(6, units=8, layers=1), ContinueHead(6, units=8), Actor(6, SPACE, units=8)],
    ids=["number", "yes_no", "actor"],
)
def test_features_may_come_in_parts(module: nn.Module) -> None:
    belief, state = torch.randn(2, 5, 2), torch.randn(2, 5, 2, 2)
    whole = scrambled(module)(torch.cat([belief, state.flatten(2)], -1))
    assert_close(module(belief, state), whole, rtol=0, atol=0)
    mixed = module(belief.bfloat16(), state)  # the first part sets the precision
    assert (mixed[0] if isinstance(mixed, tuple) else mixed).shape[:2] == (2, 5)


def test_faces(check_faces: Callable[..., TensorDict]) -> None:
    features = torch.randn(2, 5, 6)
    value = check_faces(scrambled(TwoHotHead(6, units=8, layers=1)), features)
    assert value["state_value"].shape == (2, 5, 1)
    found = check_faces(ContinueHead(6, units=8), features)
    assert found["continuation"].shape == (2, 5, 1)
    assert_close(found["continuation"], found["continue_logits"].sigmoid())
    check_faces(Actor(6, SPACE, units=8), features)
