"""Observed sequences in C are those of `rollout.py`: the same numbers and gradients, with any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dreamer_torchrl.kernels.sequence import NativeObserve, native_imagine, native_observe, observe_weights
from dreamer_torchrl.kernels.weights import sizes_of
from dreamer_torchrl.modules import RSSM, observe
from dreamer_torchrl.modules.split import SplitRSSM
from tests.kernels.compilers import every_dtype, needs_compiler
from tests.kernels.sequence_examples import (
    A,
    E,
    Inputs,
    actor_of,
    agree,
    every_size,
    model,
    one_hots,
    plain_dream,
    starts,
)

pytestmark = needs_compiler


def sequences(rssm: RSSM, batch: int, length: int, resets: str = "some") -> Inputs:
    """Whatever an observed sequence starts from and sees."""
    like = rssm.prior_logits.bias
    inputs = {
        "encoded": torch.randn(batch, length, E).to(like).requires_grad_(),
        "action": (2 * torch.randn(batch, length, A)).to(like).requires_grad_(),
        "is_init": torch.zeros(batch, length, 1, dtype=torch.bool),
        "belief": torch.randn(batch, rssm.belief_size).tanh().to(like).requires_grad_(),
        "state": one_hots(rssm, batch).to(like).requires_grad_(),
        "noise": torch.rand(batch, length, rssm.stochastic).to(like),
    }
    if resets == "all":
        inputs["is_init"][:] = True
    elif resets == "some":  # at the first step, in the middle and at the last one
        inputs["is_init"][::3, 0] = inputs["is_init"][1::3, length // 2] = inputs["is_init"][2::3, -1] = True
    return inputs


def outcome(function: Callable[..., tuple[Tensor, ...]], rssm: RSSM, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs, and the gradients of a random sum of them, of all that has one."""
    outputs = dict(zip(("beliefs", "states", "logits"), function(rssm, **renamed(inputs)), strict=True))
    generator = torch.Generator().manual_seed(5)
    objective = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in outputs.values())
    leaves = {name: p for name, p in rssm.named_parameters() if not name.startswith("prior")}
    leaves |= {name: x for name, x in inputs.items() if x.requires_grad}
    found = torch.autograd.grad(objective, list(leaves.values()))
    gradients = {f"gradient of {name}": gradient for name, gradient in zip(leaves, found, strict=True)}
    return {name: x.detach() for name, x in outputs.items()} | gradients


def renamed(inputs: Inputs) -> Inputs:
    return {("previous_action" if name == "action" else name): value for name, value in inputs.items()}


@every_dtype
@every_size
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (11, 7), (40, 2)])
def test_a_sequence_with_all_gradients(size: str, batch: int, length: int, dtype: torch.dtype) -> None:
    rssm = model(size, dtype)
    inputs = sequences(rssm, batch, length, resets="none" if batch == 1 else "some")
    wanted = outcome(observe, rssm, inputs)
    assert all(value.any() for value in wanted.values())
    agree(outcome(native_observe, rssm, inputs), wanted, 1e-10 if dtype is torch.float64 else 2e-5)


@pytest.mark.parametrize("resets", ["none", "some", "all"])
@pytest.mark.parametrize("unimix", [0.0, 0.5])
def test_resets_and_the_uniform_share(resets: str, unimix: float) -> None:
    rssm = model("odd", unimix=unimix)
    inputs = sequences(rssm, 9, 6, resets)
    wanted, found = outcome(observe, rssm, inputs), outcome(native_observe, rssm, inputs)
    agree(found, wanted, 1e-10)
    for name in ("belief", "state"):
        assert found[f"gradient of {name}"].any() == (resets != "all")
        if resets == "some":
            assert not found[f"gradient of {name}"][::3].any()  # forgotten at the first step
            assert found[f"gradient of {name}"][1::3].flatten(1).any(1).all()


def loop_inputs(rssm: RSSM, batch: int, length: int) -> tuple[Tensor, ...]:
    """What a kernel gets: products of torch round as it likes, so that they are made once."""
    inputs = {name: x.detach() for name, x in sequences(rssm, batch, length).items()}
    split, kept = SplitRSSM(rssm, inputs["encoded"].dtype), (~inputs["is_init"]).to(inputs["encoded"])
    shares = split.action_share(inputs["action"]).detach(), split.encoded_share(inputs["encoded"]).detach()
    return kept, *shares, inputs["noise"], inputs["belief"], inputs["state"].flatten(1)


def loop(rssm: RSSM, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a kernel, and the gradients that it computes itself."""
    leaves = [x.clone().requires_grad_() for x in (*inputs[1:3], *inputs[4:])]
    given = inputs[0], *leaves[:2], inputs[3], *leaves[2:]
    weights = observe_weights(SplitRSSM(rssm, inputs[0].dtype))
    outputs = NativeObserve.apply(sizes_of(rssm), 0.01, *given, *weights)
    return [*outputs, *torch.autograd.grad(sum(x.square().sum() for x in outputs), leaves)]


@every_dtype
def test_threads_change_no_bit(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    rssm = model("wide", dtype)
    actor = actor_of(rssm, dtype=dtype)
    inputs, dream = loop_inputs(rssm, 40, 4), starts(rssm, actor, 70, 3)
    results = []
    for count in (1, 3):
        threads(count)
        results.append([*loop(rssm, inputs), *native_imagine(rssm, actor, **dream)])
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    """Which rows are computed together is a matter of speed."""
    rssm = model("odd", torch.float32)
    inputs = loop_inputs(rssm, 37, 3)
    together = loop(rssm, inputs)
    for row in (0, 17, 36):
        alone = loop(rssm, tuple(x[row : row + 1] for x in inputs))
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one[0], other[row])


@pytest.mark.parametrize("spoiled", ["encoded", "action", "belief", "state"])
def test_what_is_no_number_is_not_hidden(spoiled: str) -> None:
    """It spoils its own sequence from there on, as in the plain loop, and all gradients of the weights."""
    rssm = model("odd")
    inputs = sequences(rssm, 5, 4, resets="none")
    with torch.no_grad():
        row = inputs[spoiled][2]
        (row[1] if spoiled in ("encoded", "action") else row)[..., 0] = math.nan
    wanted, found = outcome(observe, rssm, inputs), outcome(native_observe, rssm, inputs)
    for name, value in wanted.items():
        assert torch.equal(found[name].isnan(), value.isnan()), name
    assert found["logits"][2, -1].isnan().all()
    assert found["logits"][[0, 1, 3, 4]].isfinite().all()
    assert found["gradient of core.gates.weight"].isnan().all()


@pytest.mark.parametrize(
    ("seen", "weights"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=["to32", "to64"]
)
def test_computes_in_the_precision_of_the_encoding(seen: torch.dtype, weights: torch.dtype) -> None:
    rssm, actor = model("odd", weights), actor_of(model("odd", weights), dtype=weights)
    inputs = sequences(rssm, 6, 3)
    inputs["encoded"] = inputs["encoded"].detach().to(seen).requires_grad_()
    wanted, found = outcome(observe, rssm, inputs), outcome(native_observe, rssm, inputs)
    assert found["beliefs"].dtype is seen and found["gradient of core.mix_norm.norm.weight"].dtype is weights
    agree(found, wanted, 2e-5)
    dream = starts(rssm, actor, 6, 3)
    dream["belief"] = dream["belief"].to(seen)
    found = native_imagine(rssm, actor, **dream)
    for here, there in zip(found, plain_dream(rssm, actor, dream), strict=True):
        assert here.dtype is seen
        assert_close(here, there.to(seen), rtol=2e-5, atol=2e-5)


def test_inputs_that_do_not_lie_in_a_row() -> None:
    rssm = model("odd")
    inputs = sequences(rssm, 6, 5)
    turned = {
        name: x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(x.requires_grad)
        for name, x in inputs.items()
    }
    agree(outcome(native_observe, rssm, turned), outcome(native_observe, rssm, inputs), 0)
    beliefs, _, logits = native_observe(rssm, **renamed(inputs))
    (beliefs[:, -1].sum() + logits.mean()).backward()  # an expanded gradient
    found = inputs["encoded"].grad.clone()
    inputs["encoded"].grad = None
    beliefs, _, logits = observe(rssm, **renamed(inputs))
    (beliefs[:, -1].sum() + logits.mean()).backward()
    assert_close(found, inputs["encoded"].grad)
