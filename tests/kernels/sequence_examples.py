"""Models, actors and a comparison for the tests of the loops in C."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from dreamer_torchrl.modules import RSSM, ActionSpace, Actor, BoundedNormal, imagine

A, E = 3, 5
SIZES = {  # belief, hidden, stochastic, classes, blocks
    "small": (16, 6, 4, 3, 4),
    "odd": (48, 9, 5, 3, 4),
    "one_class": (7, 5, 3, 1, 1),
    "wide": (72, 33, 5, 7, 2),
    "round": (64, 32, 8, 4, 8),
}
every_size = pytest.mark.parametrize("size", SIZES)
Inputs = dict[str, Tensor]
SPACES = {
    "floats": Bounded(-1, 1, (3,)),
    "many_floats": Unbounded((19,)),
    "classes": OneHot(5),
    "several_classes": MultiCategorical([3, 3, 4]),
    "all_of_it": Composite(arm=Bounded(-1, 1, (2,)), gear=OneHot(3), knob=Categorical(4), wrist=Bounded(-1, 1, (9,))),
}


def model(
    size: str, dtype: torch.dtype = torch.float64, unimix: float = 0.01, std: float = 0.5, action_size: int = A
) -> RSSM:
    """An RSSM without any parameter that is 0 or 1."""
    torch.manual_seed(0)
    belief, hidden, stochastic, classes, blocks = SIZES[size]
    rssm = RSSM(action_size, E, belief, hidden, stochastic, classes, blocks, unimix)
    for parameter in rssm.parameters():
        nn.init.normal_(parameter, std=std)
    return rssm.to(dtype)


def one_hots(rssm: RSSM, *batch: int) -> Tensor:
    return F.one_hot(torch.randint(rssm.classes, (*batch, rssm.stochastic)), rssm.classes)


def actor_of(
    rssm: RSSM, spec: TensorSpec | None = None, dtype: torch.dtype = torch.float64, layers: int = 3, unimix: float = 0.0
) -> Actor:
    space = ActionSpace(Bounded(-1, 1, (A,)) if spec is None else spec)
    normal = partial(BoundedNormal, min_std=0.2, max_std=1.5)
    actor = Actor(rssm.feature_size, space, units=11, layers=layers, unimix=unimix, continuous=normal)
    for parameter in actor.parameters():
        nn.init.normal_(parameter, std=0.7)
    return actor.to(dtype)


def agree(here: dict[str, Tensor], there: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest number of each."""
    for name, wanted in there.items():
        found = here[name]
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
        error, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
        assert error <= tolerance * largest, f"{name}: {error:.1e} of {largest:.1e}"


def starts(rssm: RSSM, actor: Actor, rows: int, length: int) -> Inputs:
    like = rssm.prior_logits.bias
    return {
        "belief": torch.randn(rows, rssm.belief_size).tanh().to(like),
        "state": one_hots(rssm, rows).to(like),
        "noise": torch.rand(rows, length, rssm.stochastic).to(like),
        "action_noise": actor.space.noise(rows, length).to(like),
    }


def plain_dream(rssm: RSSM, actor: Actor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    given = {name: inputs[name] for name in ("noise", "action_noise")}
    features, actions = imagine(rssm, inputs["belief"], inputs["state"], actor.act, **given)
    return features, F.pad(actions, (0, 0, 0, 1))
