"""Two learners with half of each batch are one learner with the whole, also where a gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor, multiprocessing
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from dreamer_torchrl import Learner, build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.distributed import Ranks
from dreamer_torchrl.learners.learner import example_batch
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.cores import LayerNormGRU
from dreamer_torchrl.modules.heads import NormalHead
from dreamer_torchrl.modules.latents import GaussianLatent
from dreamer_torchrl.modules.layers import dense_layers
from dreamer_torchrl.objectives.prototypes import balanced
from dreamer_torchrl.objectives.representation import BarlowTerm, InfoNCETerm
from tests.objectives.examples import TINY

UPDATES, BATCH, LENGTH, RANKS = 10, 4, 6, 2
SCORES = torch.linspace(-1, 1, 24, dtype=torch.float64).sin().reshape(6, 4)  # of steps and prototypes


def third(dtype: torch.dtype) -> Agent:
    return build_agent(Composite(observation=Unbounded((3,))), OneHot(3), TINY, dtype=dtype).to(dtype)


def second(dtype: torch.dtype) -> Agent:
    """DreamerV2's parts with V1's latent."""
    kind = dense_layers()
    heads = {"reward": partial(NormalHead, kind=kind), "value": partial(NormalHead, kind=kind)}
    parts = {"core": LayerNormGRU, "layers": kind, "prior_layers": 1, "latent": GaussianLatent, **heads}
    specs = Composite(observation=Unbounded((3,))), Bounded(-1, 1, (2,))
    return build_agent(*specs, TINY, dtype=dtype, **parts).to(dtype)


def terms() -> list[Any]:
    """Losses that are no means over sequences."""
    return [BarlowTerm(), InfoNCETerm()]


RATES = {"model": 1e-3, "actor": 1e-3, "value": 1e-3}
MEMBERS: dict[str, tuple[Callable[[torch.dtype], Agent], Callable[..., Learner]]] = {
    "V3": (third, Learner),
    "correlations": (third, lambda *parts, extra_losses, **more: Learner(*parts, extra_losses=terms(), **more)),
    "V2": (second, partial(SeparateLearner, rates=RATES, target_every=3, reward_momentum=0.9)),
}


def trained(member: str, dtype: torch.dtype, ranks: Ranks, updates: int, spoilt: bool = False) -> dict[str, Any]:
    """Weights and metrics after updates from this rank's part of batches and noise that are the same on all."""
    torch.manual_seed(ranks.rank)  # the weights of rank 0 count
    make_agent, make_learner = MEMBERS[member]
    factor = torch.tensor(1.0)
    extra = [lambda data: TensorDict({"loss_extra": data["belief"].mean() * factor})] if spoilt else []
    learner = make_learner(make_agent(dtype), native=False, ranks=ranks, extra_losses=extra)
    share = BATCH // ranks.size
    part = slice(ranks.rank * share, (ranks.rank + 1) * share)
    metrics = []
    for number in range(updates):
        batch = example_batch(learner.agent, BATCH, LENGTH, seed=number)
        batch = batch.apply(lambda value: value.to(dtype) if value.dtype is torch.float32 else value)
        if number == 1 and ranks.rank == 1:
            factor.fill_(torch.nan)
        noise = noise_of(learner, batch, number)
        learner.draw_noise = lambda *_, noise=noise: noise[part]
        metrics.append(learner.update(batch[part])[0])
    return {"agent": learner.agent.state_dict(), "metrics": torch.stack(metrics), "state": learner.state_dict()}


def noise_of(learner: Learner, batch: TensorDict, number: int) -> TensorDict:
    learner.generator.manual_seed(number)
    return Learner.draw_noise(learner, BATCH, LENGTH + learner.hyperparameters.context)[:, : batch.shape[1]]


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    ranks = Ranks(dist.group.WORLD)
    found = {
        (member, dtype): trained(member, dtype, ranks, updates)
        for member in MEMBERS
        for dtype, updates in ((torch.float64, UPDATES), (torch.float32, 1))
    }
    found["spoilt"] = trained("V3", torch.float64, ranks, 2, spoilt=True)
    found["balanced"] = balanced(SCORES.chunk(RANKS)[rank], 0.05, ranks.gather)
    try:
        ranks.check_same([torch.tensor(1.0 + rank)], "The weights")
    except RuntimeError as error:
        found["told"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two real processes finds."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(one_rank, (str(folder),), nprocs=RANKS, start_method="fork")
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("member", MEMBERS)
def test_halves_are_the_whole(ranks: list[dict], member: str, dtype: torch.dtype) -> None:
    exact = dtype is torch.float64
    whole = trained(member, dtype, Ranks(), UPDATES if exact else 1)
    tolerance = 1e-12 if exact else 1e-5
    for rank in ranks:
        found = rank[member, dtype]
        for name, value in whole["agent"].items():
            assert_close(found["agent"][name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
        for name in ("objective", "loss_actor", "loss_dynamics", "loss_value"):
            assert_close(found["metrics"][name], whole["metrics"][name], rtol=1e-5, atol=1e-6)


def test_ranks_are_equal_in_all_bits(ranks: list[dict]) -> None:
    for key in [(member, dtype) for member in MEMBERS for dtype in (torch.float64, torch.float32)]:
        first, second = (rank[key]["state"] for rank in ranks)
        for part in ("agent", "slow_value", "return_normalizer"):
            assert all(
                value.equal(second[part][name]) for name, value in first[part].items() if isinstance(value, Tensor)
            )


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["spoilt"]["metrics"]["finite"].tolist() == [1.0, 0.0]
        assert all(value.isfinite().all() for value in rank["spoilt"]["agent"].values())
    first, second = (rank["spoilt"]["agent"] for rank in ranks)
    assert all(value.equal(second[name]) for name, value in first.items())


def test_different_weights_are_noticed(ranks: list[dict]) -> None:
    assert all("The weights of rank 1 are not those of rank 0" in rank["told"] for rank in ranks)


def test_prototypes_are_balanced_over_all_ranks(ranks: list[dict]) -> None:
    assert_close(torch.cat([rank["balanced"] for rank in ranks]), balanced(SCORES, 0.05), rtol=1e-12, atol=0)
