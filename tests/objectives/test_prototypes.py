"""The losses of DreamerPro by plain formulas, and what they do in a learner."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from dreamer_torchrl import Agent, Learner
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.modules import NoDecoder
from dreamer_torchrl.objectives.prototypes import PrototypeTerm, balanced, shifted
from tests.objectives.examples import TINY, taught_by


def sinkhorn(scores: list[list[float]], epsilon: float, iterations: int = 3, steps_first: bool = False) -> torch.Tensor:
    """The published algorithm on plain numbers: prototypes share alike, then steps do."""
    shares = [[math.exp(score / epsilon) for score in row] for row in scores]
    for _ in range(iterations):
        for by_prototype in (False, True) if steps_first else (True, False):
            groups = zip(*shares, strict=True) if by_prototype else shares
            sums = [sum(group) for group in groups]
            count = len(sums)
            shares = [
                [share / sums[k if by_prototype else n] / count for k, share in enumerate(row)]
                for n, row in enumerate(shares)
            ]
    return torch.tensor([[share * len(scores) for share in row] for row in shares], dtype=torch.float64)


def test_assignments_are_balanced_as_published() -> None:
    torch.manual_seed(0)
    scores = torch.randn(7, 4, dtype=torch.float64) / 3
    found = balanced(scores, 0.05)
    assert_close(found, sinkhorn(scores.tolist(), 0.05), rtol=1e-10, atol=1e-12)
    assert_close(found.sum(1), torch.ones(7, dtype=torch.float64))
    for bent in (sinkhorn(scores.tolist(), 0.05, iterations=2), sinkhorn(scores.tolist(), 0.05, steps_first=True)):
        assert (bent - found).abs().max() > 1e-3


def test_images_move_and_repeat_their_border() -> None:
    images = torch.randint(256, (2, 3, 6, 5, 1), dtype=torch.uint8)
    moved = shifted(images, torch.tensor([[0, 3], [5, 2]]), 3)
    for n, (down, right) in enumerate(((-3, 0), (2, -1))):
        for row in range(6):
            for column in range(5):
                source = images[n, :, min(max(row + down, 0), 5), min(max(column + right, 0), 4)]
                assert moved[n, :, row, column].equal(source)


def pixel_learner(native: bool | None = False, **options: int) -> tuple[Learner, PrototypeTerm]:
    torch.manual_seed(0)
    spec = Composite(pixels=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8), observation=Unbounded((2,)))
    agent = Agent(spec, OneHot(2), TINY, decoder=NoDecoder)
    term = PrototypeTerm(count=9, size=4, **options)
    return Learner(agent, extra_losses=[term], native=native), term


def test_losses_are_those_of_the_formula() -> None:
    """From the views that the term makes, in plain numbers."""
    learner, term = pixel_learner()
    batch = example_batch(learner.agent, batch=2, length=5)
    _, data = learner.world_model_loss(batch.copy().set("noise", learner.draw_noise(*batch.shape)))
    state = learner.generator.get_state()
    found = term(data)
    learner.generator.set_state(state)
    views = term._views(data)
    learner.networks.encoder(views)
    learner.networks.observe(views)
    unit = [vector / vector.norm() for vector in term.prototypes.detach()]
    compared = {"encoded": (term.from_encoded, "encoded_latents"), "features": (term.from_features, "features")}
    vectors = {name: project(views[key]).detach() for name, (project, key) in compared.items()}
    logs, scores = {}, {}
    for name, all_vectors in vectors.items():
        for view in (0, 1):
            rows = [x for row in all_vectors[2 * view : 2 * view + 2] for x in row[1:]]
            scores[name, view] = [[float(x / x.norm() @ one) for one in unit] for x in rows]
            logs[name, view] = [
                [s / 0.1 - math.log(sum(math.exp(o / 0.1) for o in row)) for s in row] for row in scores[name, view]
            ]
    targets = [sinkhorn(scores["encoded", view], 0.05).tolist() for view in (0, 1)]  # the copy is equal as yet

    def cross_entropy(name: str, view: int, target: int) -> float:
        pairs = zip(targets[target], logs[name, view], strict=True)
        return -sum(sum(q * p for q, p in zip(*pair, strict=True)) for pair in pairs) / len(targets[target])

    expected = {
        "loss_swav": (cross_entropy("encoded", 0, 1) + cross_entropy("encoded", 1, 0)) / 2,
        "loss_temporal": (cross_entropy("features", 0, 0) + cross_entropy("features", 1, 1)) / 2,
        "loss_norm": sum(float((x.norm(dim=-1) - 1).square().mean()) for x in vectors.values()),
    }
    assert {name: float(loss) for name, loss in found.items()} == pytest.approx(expected, rel=1e-4)
    swapped = (cross_entropy("encoded", 0, 0) + cross_entropy("encoded", 1, 1)) / 2
    assert swapped != pytest.approx(expected["loss_swav"], rel=1e-3)


def test_what_each_loss_teaches() -> None:
    learner, term = pixel_learner()
    batch = example_batch(learner.agent, batch=2, length=5)
    for name, taught in (("swav", {"encoder"}), ("temporal", {"encoder", "rssm"}), ("norm", {"encoder", "rssm"})):
        losses, _ = learner.losses(batch, learner.draw_noise(*batch.shape))
        assert taught_by(losses[f"loss_{name}"], learner.agent) == taught
    assert not any(parameter.requires_grad for parameter in term.slow.parameters())


@pytest.mark.parametrize("frozen", [2, 100])
def test_copy_follows_and_prototypes_stay_as_long_as_they_are_frozen(frozen: int) -> None:
    learner, term = pixel_learner(frozen=frozen)
    batch, (slow, *_), (own, *_) = (
        example_batch(learner.agent, batch=2, length=5),
        term.slow.parameters(),
        learner.agent.encoder.parameters(),
    )
    start = torch.nn.functional.normalize(term.prototypes.detach(), dim=-1)
    for update in range(4):
        expected = torch.lerp(slow, own, 0.05 if update else 1.0)
        metrics, _ = learner.update(batch)
        assert metrics["finite"] and {"loss_swav", "loss_temporal", "loss_norm"} <= set(metrics.keys())
        assert_close(slow, expected)
    moved = not torch.allclose(torch.nn.functional.normalize(term.prototypes.detach(), dim=-1), start, atol=1e-7)
    assert moved == (frozen == 2)
    other, copied = pixel_learner(frozen=frozen)
    other.load_state_dict(learner.state_dict())
    assert_close(other.state_dict(), learner.state_dict(), rtol=0, atol=0)
    assert copied.updates == 4 and copied.slow is not term.slow
    one, two = (each.update(batch)[0] for each in (learner, other))
    assert_close(one, two, rtol=0, atol=0)
