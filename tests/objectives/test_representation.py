"""Losses of representations: plain formulas in float64, gradients, what a wrong formula would give, and a learner."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import Composite, OneHot, Unbounded

from dreamer_torchrl import Agent, Learner
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.modules import NoDecoder
from dreamer_torchrl.objectives.representation import BarlowTerm, InfoNCETerm, PredictionTerm
from tests.objectives.examples import TINY, taught_by, tiny_agent, world_model_loss

Formula = Callable[[Tensor, Tensor], Tensor]
BATCH, STEPS, FEATURES, ENCODED = 3, 4, 6, 5


def barlow(x: Tensor, y: Tensor, correction: int = 1, every: float = 0.0, centred: bool = True) -> Tensor:
    """The formula of the paper, number by number; ``every`` is what the other terms' share is more than 5e-4."""
    count, total = len(x), torch.zeros((), dtype=torch.float64)
    columns = []
    for one in (*x.unbind(1), *y.unbind(1)):
        mean = sum(one) / count
        deviation = (sum((value - mean) ** 2 for value in one) / (count - correction)).sqrt()
        columns.append([(value - mean * centred) / (deviation + 1e-8) for value in one])
    width = x.shape[1]
    for i, ours in enumerate(columns[:width]):
        for j, theirs in enumerate(columns[width:]):
            correlation = sum(a * b for a, b in zip(ours, theirs, strict=True)) / count
            total = total + ((correlation - 1) ** 2 if i == j else (5e-4 + every) * correlation**2)
    return 0.05 * total


def infonce(x: Tensor, y: Tensor, temperature: float = 1.0, by_columns: bool = False) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own in range(len(x)):
        pairs = [(x[other], y[own]) if by_columns else (x[own], y[other]) for other in range(len(x))]
        logits = [(a * b).sum() / temperature for a, b in pairs]
        largest = max(logits)
        total = total - (logits[own] - largest) + sum((logit - largest).exp() for logit in logits).log()
    return total / len(x)


CASES = [
    (
        BarlowTerm,
        barlow,
        {
            "biased deviation": lambda x, y: barlow(x, y, correction=0),
            "equal weights": lambda x, y: barlow(x, y, every=1 - 5e-4),
            "no centre": lambda x, y: barlow(x, y, centred=False),
            "sides exchanged": lambda x, y: barlow(x.flip(1), y),
        },
    ),
    (
        InfoNCETerm,
        infonce,
        {
            "temperature": lambda x, y: infonce(x, y, temperature=0.1),
            "the other direction": lambda x, y: infonce(x, y, by_columns=True),
        },
    ),
]
NAMES = ["r2", "infonce"]


def example(make: type[PredictionTerm]) -> tuple[PredictionTerm, TensorDict]:
    """A term in float64 that was set up, and data of which everything has a gradient."""
    agent = nn.Module()
    agent.rssm, agent.encoder = nn.Module(), nn.Module()
    agent.rssm.feature_size, agent.encoder.out_features = FEATURES, ENCODED
    learner = nn.Module()
    learner.agent, learner.device = agent, torch.device("cpu")
    torch.manual_seed(0)
    term = make()
    term.setup(learner)
    how = {"dtype": torch.float64, "requires_grad": True}
    data = {
        "features": torch.randn(BATCH, STEPS, FEATURES, **how),
        "encoded_latents": torch.randn(BATCH, STEPS, ENCODED, **how),
    }
    return term.double(), TensorDict(data, batch_size=(BATCH, STEPS))


def by_formula(formula: Formula, term: PredictionTerm, data: TensorDict) -> Tensor:
    features, encoded = data["features"].reshape(-1, FEATURES), data["encoded_latents"].reshape(-1, ENCODED)
    return formula(features @ term.projector.weight.t(), encoded.detach())


@pytest.mark.parametrize(("make", "formula", "wrong"), CASES, ids=NAMES)
def test_loss_and_gradient_are_those_of_the_formula(
    make: type[PredictionTerm], formula: Formula, wrong: dict[str, Formula]
) -> None:
    term, data = example(make)
    (loss,) = term(data).values()
    expected, inputs = by_formula(formula, term, data), [data["features"], term.projector.weight]
    assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(loss, [*inputs, data["encoded_latents"]], allow_unused=True)
    assert gradients[2] is None
    assert_close(list(gradients[:2]), list(torch.autograd.grad(expected, inputs)), rtol=1e-8, atol=1e-10)
    for bent in wrong.values():
        assert (by_formula(bent, term, data) / expected - 1).abs() > 1e-2


@pytest.mark.parametrize("make", [BarlowTerm, InfoNCETerm], ids=NAMES)
def test_the_encoder_learns_without_a_decoder(make: type[PredictionTerm]) -> None:
    """The term trains encoder and RSSM through the features, and its own matrix; nothing is reconstructed."""
    torch.manual_seed(0)
    agent = Agent(Composite(observation=Unbounded((3,))), OneHot(2), TINY, decoder=NoDecoder)
    learner = Learner(agent, extra_losses=[term := make()])
    batch = example_batch(agent, batch=4, length=6)
    losses, data = learner.losses(batch, learner.draw_noise(*batch.shape))
    assert "loss_reconstruction" not in {*losses.keys(), *learner.world_model_loss.out_keys}
    assert taught_by(losses[f"loss_{term.name}"], agent) == {"encoder", "rssm"}
    assert term.projector.weight.grad.count_nonzero() and data["encoded_latents"].shape[:2] == (4, 6)
    before = term.projector.weight.clone()
    for _ in range(2):  # the rate of the first one is 0
        metrics, _ = learner.update(batch)
    assert metrics["finite"] and not term.projector.weight.equal(before)
    other = Learner(agent, extra_losses=[make()])
    other.load_state_dict(learner.state_dict())
    assert_close(other.state_dict(), learner.state_dict(), rtol=0, atol=0)


def test_bfloat16_is_compared_in_full_precision() -> None:
    term, data = example(InfoNCETerm)
    (exact,) = term(data).values()
    (rounded,) = term.float()(data.to(torch.bfloat16)).values()
    assert rounded.dtype is torch.float32 and abs(rounded / exact - 1) < 0.05


def test_a_decoder_of_some_keys_reconstructs_these() -> None:
    spec = Composite(observation=Unbounded((3,)), goal=Unbounded((2,)))
    agent = tiny_agent()
    whole = Agent(spec, OneHot(2), TINY)

    def only_goal(spaces: dict, belief: int, state: int) -> nn.Module:
        return type(agent.decoder)({"goal": spaces["goal"]}, belief, state, units=8)

    part = Agent(spec, OneHot(2), TINY, decoder=only_goal)
    for one, names in ((whole, {"reconstruction/observation", "reconstruction/goal"}), (part, {"reconstruction/goal"})):
        losses, _ = world_model_loss(one)(example_batch(one, batch=2, length=4))
        assert {key for key, _ in losses.items() if key.startswith("reconstruction/")} == names
        assert_close(losses["loss_reconstruction"], sum(losses[name] for name in names))
