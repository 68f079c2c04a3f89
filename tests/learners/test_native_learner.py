"""A learner with the loops in C learns what it learns without them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, Unbounded

from dreamer_torchrl import Hyperparameters, Learner, Size, build_agent
from dreamer_torchrl.learners.learner import example_batch
from tests.kernels.compilers import needs_compiler
from tests.kernels.sequence_examples import SPACES

pytestmark = needs_compiler

TINY = Size(belief=24, hidden=10, stochastic=5, classes=3, blocks=2, depth=2, units=13)
SEEN = Composite(pixels=Bounded(0, 255, (48, 48, 1), dtype=torch.uint8), speed=Unbounded((5,)))
FLOATS = Composite(observation=Unbounded((3,)))
FAST = Hyperparameters(learning_rate=1e-3, warmup=2, imagination_length=4)


def learners(
    seen: Composite, size: Size | str, dtype: torch.dtype | None = None, double: bool = False
) -> tuple[Learner, Learner]:
    """The same one without and with kernels."""
    torch.manual_seed(0)
    agent = build_agent(seen, SPACES["all_of_it"], size, dtype=dtype)
    if double:
        agent.double()
    return tuple(Learner(copy.deepcopy(agent), FAST, seed=3, native=native) for native in (False, True))


def update(learner: Learner, times: int = 3) -> dict[str, Tensor]:
    """All metrics and the latents of the last update."""
    found = {}
    for number in range(times):
        metrics, latents = learner.update(example_batch(learner.agent, batch=3, length=6, seed=number))
        found |= {f"{number} {name}": value for name, value in metrics.items()}
    return found | {"belief": latents["belief"], "state": latents["state"].float()}


@pytest.mark.parametrize(("seen", "size"), [(FLOATS, "nano"), (SEEN, TINY)], ids=["nano", "images"])
def test_a_learner_with_kernels_learns_the_same(seen: Composite, size: Size | str) -> None:
    """In float64, where rounding cannot turn the sign of a gradient that is almost zero."""
    plain, native = learners(seen, size, double=True)
    wanted, found = update(plain), update(native)
    for name, value in wanted.items():
        assert_close(found[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for (name, here), there in zip(native.agent.named_parameters(), plain.agent.parameters(), strict=True):
        assert_close(here, there, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_what_one_learner_saved_the_other_goes_on_with() -> None:
    plain, native = learners(FLOATS, TINY, double=True)
    update(native, times=2)
    plain.load_state_dict(copy.deepcopy(native.state_dict()))
    assert plain.optimizer.param_groups[0]["native"] is False
    wanted, found = update(plain, times=1), update(native, times=1)
    for name, value in wanted.items():
        assert_close(found[name].double(), value.double(), rtol=1e-5, atol=1e-6)
    native.load_state_dict(plain.state_dict())
    assert native.optimizer.param_groups[0]["native"] is True
    for here, there in zip(native.agent.parameters(), plain.agent.parameters(), strict=True):
        assert torch.equal(here, there)


def test_a_learner_in_bfloat16_falls_back() -> None:
    plain, native = learners(FLOATS, TINY, dtype=torch.bfloat16)
    for name, value in update(plain).items():
        assert value.isfinite().all(), name
    found = update(native)
    assert all(value.isfinite().all() for value in found.values())
