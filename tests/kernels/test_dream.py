"""Dreams in C are the imagination of `rollout.py`: the same features and actions, of any actor."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dreamer_torchrl.kernels import attach
from dreamer_torchrl.kernels.sequence import native_imagine
from dreamer_torchrl.kernels.weights import actor_fits
from dreamer_torchrl.modules import ActionSpace, ImagineRollout, TruncatedNormal
from tests.kernels.compilers import every_dtype, needs_compiler
from tests.kernels.sequence_examples import SPACES, actor_of, model, plain_dream, starts

pytestmark = needs_compiler


@every_dtype
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize(("size", "rows", "length"), [("odd", 37, 6), ("one_class", 1, 1), ("wide", 8, 15)])
def test_a_dream(kind: str, size: str, rows: int, length: int, dtype: torch.dtype) -> None:
    rssm = model(size, dtype, action_size=ActionSpace(SPACES[kind]).size)
    actor = actor_of(rssm, SPACES[kind], dtype)
    inputs = starts(rssm, actor, rows, length)
    found, wanted = native_imagine(rssm, actor, **inputs), plain_dream(rssm, actor, inputs)
    tolerance = 1e-10 if dtype is torch.float64 else 1e-4
    for here, there in zip(found, wanted, strict=True):
        assert not here.requires_grad
        assert_close(here, there, rtol=tolerance, atol=tolerance)
    assert not found[1][:, -1].any() and found[1][:, :-1].any(-1).all()


@pytest.mark.parametrize("unimix", [0.0, 0.3])
@pytest.mark.parametrize("layers", [1, 5])
def test_actors(unimix: float, layers: int) -> None:
    """Of any depth; drawing with a uniform share in it draws otherwise."""
    spec = SPACES["all_of_it"]
    rssm = model("small", action_size=ActionSpace(spec).size)
    actor = actor_of(rssm, spec, layers=layers, unimix=unimix)
    inputs = starts(rssm, actor, 50, 4)
    found, wanted = native_imagine(rssm, actor, **inputs), plain_dream(rssm, actor, inputs)
    for here, there in zip(found, wanted, strict=True):
        assert_close(here, there, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["deep", "truncated"])
def test_an_actor_that_the_kernels_do_not_know_dreams_without_them(kind: str) -> None:
    """There is room for 8 layers, and floats are normals: anything else is no error."""
    rssm = model("small")
    actor = actor_of(rssm, layers=9 if kind == "deep" else 3)
    if kind == "truncated":
        assert actor_fits(actor)
        actor.distribution_options["continuous"] = TruncatedNormal
    assert not actor_fits(actor)
    inputs = starts(rssm, actor, 2, 2)
    dream = ImagineRollout(rssm, actor, 2)
    attach(dream)
    wanted = plain_dream(rssm, actor, inputs)
    for here, there in zip(dream(*inputs.values()), wanted, strict=True):
        assert_close(here, there)
