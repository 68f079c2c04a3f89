"""One update: it learns, it repeats itself bit for bit, and it reads nothing back."""

from __future__ import annotations

import copy
import io
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.trainers.algorithms import DreamerV3Optimizer

from dreamer_torchrl import Hyperparameters, Learner, Size, build_agent
from dreamer_torchrl.learners.learner import MakeOptimizer, example_batch, set_generator_state, total
from dreamer_torchrl.modules import observe
from dreamer_torchrl.objectives.common import DreamerLoss
from tests.learners.learner_examples import learner_for, weights
from tests.objectives.examples import TINY, tiny_learner
from tests.training.training_examples import differences

SMALL = Size(belief=64, hidden=16, stochastic=8, classes=4, blocks=4, depth=2, units=16)
SEEN = Composite(
    goal=Categorical(4),
    hook=Composite(position=Unbounded((5,))),
    pixels=Bounded(0, 255, (48, 48, 1), dtype=torch.uint8),
)
DONE = Composite(arm=Bounded(-1, 1, (2,)), gear=OneHot(3), knob=Categorical(3))
LOSSES = {f"loss_{name}" for name in "dynamics representation reconstruction reward continue".split()}
LOSSES |= {"loss_actor", "loss_value", "loss_replay_value"}
FAST = Hyperparameters(learning_rate=1e-2, warmup=5, imagination_length=3)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def test_a_tiny_agent_overfits_one_batch() -> None:
    """Image, floats and class; floats, one-hot and class as action: all that can be learned of noise is learned.

    Not the actor's loss: what it is compared with, the critic, moves along. The critic's own loss is weighted by how
    likely the dream goes on, which has to be learned too; it falls per unit of that weight.
    """
    learner = Learner(build_agent(SEEN, DONE, SMALL), FAST)
    batch = example_batch(learner.agent, batch=3, length=6)
    history = torch.stack([learner.update(batch)[0] for _ in range(70)])  # [70]
    assert all(value.isfinite().all() for value in history.values())
    assert all(parameter.isfinite().all() for parameter in learner.agent.parameters())

    first, last = history[0], history[-20:].mean()
    for name in ("reward", "continue", "replay_value"):
        assert last[f"loss_{name}"] < 0.7 * first[f"loss_{name}"], name
    for name in ("dynamics", "representation"):  # only down to the free nats
        assert last[f"loss_{name}"] < first[f"loss_{name}"], name
    assert last["reconstruction/goal"] < 0.4 * first["reconstruction/goal"]
    assert last["reconstruction/hook/position"] < 0.4 * first["reconstruction/hook/position"]
    assert last["reconstruction/pixels"] < 0.95 * first["reconstruction/pixels"]  # down to the noise's variance, 192
    assert last["loss_value"] / last["discount_weight"] < 0.7 * first["loss_value"] / first["discount_weight"]
    assert last["objective"] < first["objective"]


def test_every_parameter_learns() -> None:
    options = replace(FAST, free_nats=0)  # below the free nats, the prior learns nothing
    learner = Learner(build_agent(SEEN, DONE, TINY), options)
    before = weights(learner.agent)
    for seed in range(3):  # reward and value start at exactly zero and let gradients through from the second step on
        learner.update(example_batch(learner.agent, batch=2, length=4, seed=seed))
    after = weights(learner.agent)
    assert not [name for name, value in before.items() if (value == after[name]).all()]


@every_dtype
def test_latents_are_those_of_the_trained_steps(dtype: torch.dtype) -> None:
    """Float32 beliefs and class indices in bytes, as computed before the update from the stored start."""
    learner, same = learner_for(dtype=dtype), learner_for(dtype=dtype)
    agent, rssm = same.agent, same.agent.rssm
    batch = example_batch(agent, batch=2, length=4)
    _, latents = learner.update(batch)
    assert (latents.batch_size, latents["belief"].shape, latents["state"].shape) == ((2, 4), (2, 4, 16), (2, 4, 4))
    assert (latents["belief"].dtype, latents["state"].dtype) == (torch.float32, torch.uint8)
    assert not latents["belief"].requires_grad

    with torch.no_grad():
        beliefs, states, _ = observe(
            rssm,
            agent.encoder(batch["observation"][:, 1:]),
            batch["action"][:, :-1].float(),
            batch["is_init"][:, 1:],
            batch["belief"][:, 0],
            rssm.one_hot(batch["state"][:, 0]),
            same.draw_noise(2, 5)["posterior"][:, 1:],
        )
    assert_close(latents["belief"], beliefs.float())
    assert (latents["state"] == states.argmax(-1)).all()


def test_gradients_that_were_left_do_not_count() -> None:
    learner, same = learner_for(), learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    for parameter in learner.agent.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.update(batch), same.update(batch)
    assert (weights(learner.agent) == weights(same.agent)).all()


def test_an_agent_that_was_moved_is_refused() -> None:
    """Optimizer and target critic stay where they were built."""
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    learner.agent.to("meta")
    with pytest.raises(RuntimeError, match="moved from cpu to meta after its Learner was built"):
        learner.update(batch)


def test_priorities_are_the_world_models_loss_of_each_step() -> None:
    learner, usual = tiny_learner(priorities=True), tiny_learner()
    batch = example_batch(learner.agent, batch=2, length=4)
    metrics, latents = learner.update(batch)
    assert latents["priority"].shape == (2, 4) and not latents["priority"].requires_grad
    terms = ("dynamics", "representation", "reconstruction", "reward", "continue")
    assert_close(latents["priority"].mean(), sum(metrics[f"loss_{term}"] for term in terms))
    assert "priority" not in usual.update(batch)[1].keys()  # noqa: SIM118


def test_importance_weights_weigh_sequences() -> None:
    """Ones change no bit; a sequence of weight 0 has no gradient, as if its batch were only half as large."""
    learner = tiny_learner()
    batch = example_batch(learner.agent, batch=2, length=4)
    noise = learner.draw_noise(*batch.shape)

    def gradients(batch: TensorDict, noise: TensorDict) -> tuple[TensorDict, list[Tensor]]:
        learner.zero_grad()
        learner.actor_loss.eval()  # the normalizer sees all returns
        losses, _ = learner.losses(batch, noise)
        total(losses).backward()
        return losses.detach(), [parameter.grad for parameter in learner.agent.parameters()]

    plain, expected = gradients(batch, noise)
    found, same = gradients(batch.clone().set("priority_weight", torch.ones(2, 5)), noise)
    assert (plain == found).all() and all(torch.equal(*pair) for pair in zip(expected, same, strict=True))
    weight = torch.tensor([2.0, 0.0]).expand(5, 2).T
    _, found = gradients(batch.clone().set("priority_weight", weight.unsqueeze(-1)), noise)
    _, alone = gradients(batch[:1].clone(), noise[:1])
    for one, other in zip(found, alone, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()


class Smoothness(torch.nn.Module):
    """An extra loss with a parameter of its own: beliefs should be predictable from the one before."""

    def __init__(self, size: int):
        super().__init__()
        self.layer = torch.nn.Linear(size, size)

    def forward(self, data: TensorDict) -> TensorDict:
        error = self.layer(data["belief"][:, :-1]) - data["belief"][:, 1:]
        return TensorDict({"loss_smoothness": error.square().mean(), "smoothness": error.detach().abs().mean()})


def test_an_extra_loss_is_trained_and_saved() -> None:
    """A function or a module; its own parameters are trained with the agent's."""

    def quiet(data: TensorDict) -> TensorDict:
        return TensorDict({"loss_quiet": 1e-3 * data["belief"].square().mean()})

    learner = tiny_learner(extra_losses=[Smoothness(TINY.belief), quiet], warmup=0)
    batch = example_batch(learner.agent, batch=2, length=4)
    before = learner.loss.extra[0].layer.weight.detach().clone()
    metrics, _ = learner.update(batch)
    assert {"loss_smoothness", "smoothness", "loss_quiet"} <= set(metrics.keys())
    assert_close(metrics["objective"], sum(value for key, value in metrics.items() if key.startswith("loss_")))
    assert not learner.loss.extra[0].layer.weight.equal(before)
    other = tiny_learner(extra_losses=[Smoothness(TINY.belief), quiet], warmup=0)
    other.load_state_dict(learner.state_dict())
    assert other.loss.extra[0].layer.weight.equal(learner.loss.extra[0].layer.weight)


def test_a_subclass_changes_the_losses() -> None:
    class Curious(Learner):
        def make_loss(self, compile: bool) -> DreamerLoss:
            loss = super().make_loss(compile)
            loss.add(Smoothness(self.agent.rssm.belief_size))
            return loss

    learner = Curious(build_agent(SEEN, DONE, TINY), FAST)
    assert learner.update(example_batch(learner.agent, batch=2, length=4))[0]["loss_smoothness"] > 0
    learner.loss.add(lambda data: TensorDict({"loss_actor": data["belief"].sum()}))
    with pytest.raises(ValueError, match="gives loss_actor, which is there"):
        learner.update(example_batch(learner.agent, batch=2, length=4))


def test_same_seed_same_weights_bit_for_bit() -> None:
    batches = [example_batch(learner_for().agent, batch=2, length=4, seed=seed) for seed in range(3)]

    def train(seed: int) -> TensorDict:
        learner = learner_for(seed)
        for batch in batches:
            torch.rand(1)  # torch's own generator does not matter
            learner.update(batch)
        return weights(learner.agent)

    first, same, other = train(0), train(0), train(1)
    assert (first == same).all()
    assert not (first == other).all()


@pytest.mark.parametrize("slow_target", [False, True])
def test_a_saved_learner_goes_on_bit_for_bit(slow_target: bool) -> None:
    """Into a learner of another seed and other weights, through a file that holds nothing but tensors and numbers."""
    kept = learner_for(slow_target=slow_target)
    batches = [example_batch(kept.agent, batch=2, length=4, seed=seed) for seed in range(5)]
    for batch in batches[:2]:
        kept.update(batch)
    file = io.BytesIO()
    torch.save(kept.state_dict(), file)
    back = Learner(build_agent(Composite(observation=Unbounded((3,))), OneHot(2), TINY), kept.hyperparameters, seed=7)
    file.seek(0)
    back.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[2:]:
        metrics, latents = kept.update(batch)
        same_metrics, same_latents = back.update(batch)
        assert (metrics == same_metrics).all()
        assert (latents == same_latents).all()
    assert (weights(kept.agent) == weights(back.agent)).all()
    assert (kept.value_loss.target_value_params.data == back.value_loss.target_value_params.data).all()


def test_the_generator_of_another_kind_of_device_seeds_this_one() -> None:
    """A run that was saved on a GPU, whose generators have a state of 16 bytes, goes on here, each time alike."""

    def drawn(state: Tensor) -> list[float]:
        generator = torch.Generator()
        set_generator_state(generator, state)
        return torch.rand(3, generator=generator).tolist()

    first, second = (torch.arange(start, start + 16, dtype=torch.uint8) for start in (0, 1))
    assert drawn(first) == drawn(first) != drawn(second)


def test_only_the_learner_computes_with_compiled_networks() -> None:
    """Else an agent would act otherwise in training than after it is loaded."""
    learner = learner_for(compile=True)
    losses = (learner.world_model_loss, learner.actor_loss)
    compiled = {
        type(m).__name__.removeprefix("Native")
        for loss in losses
        for m in loss.modules()
        if m._compiled_call_impl is not None
    }
    assert compiled == {"Encoder", "Decoder", "TwoHotHead", "ContinueHead", "Actor"}
    assert all(module._compiled_call_impl is None for module in learner.agent.modules())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_networks_and_steps_give_the_same_numbers_and_gradients() -> None:
    """Only the rounding may differ. Each kind of network and one step of each loop is compiled here, the learning of
    actor and critic, which are networks of these kinds again, by `benchmarks/exactness.py --compile`: it takes minutes.
    """
    found = []
    for compile in (False, True):
        learner = learner_for(compile=compile)
        batch = example_batch(learner.agent, batch=2, length=4)
        losses, data = learner.world_model_loss(batch.set("noise", learner.draw_noise(*batch.shape)))
        trained = dict(learner.agent.encoder.named_parameters("encoder"))
        for name in ("rssm", "decoder", "reward", "continuation"):
            trained |= dict(getattr(learner.agent, name).named_parameters(name))
        gradients = torch.autograd.grad(total(losses), list(trained.values()))
        with torch.no_grad():
            dream = learner.actor_loss.networks["imagine"](data)
        found.append((losses.to_dict(), dict(zip(trained, gradients, strict=True)), dream.to_dict()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert len(found[0][1]) > 30 and {"features", "action"} <= found[0][2].keys()


OPTIMIZERS: dict[str, MakeOptimizer | None] = {
    "laprop": None,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "torchrl": lambda parameters: DreamerV3Optimizer(parameters, lr=1e-3, warmup_steps=0),
}


def learned(learner: Learner) -> dict[str, Any]:
    """A copy of what an update may change, but for the generator, which has been used all the same."""
    state = copy.deepcopy(learner.state_dict())
    return {name: part for name, part in state.items() if name != "generator"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_learner_skips_a_loss_that_is_not_finite(optimizer: MakeOptimizer | None) -> None:
    learner = tiny_learner(reconstruction_scale=math.inf, optimizer=optimizer)
    before = learned(learner)
    metrics, _ = learner.update(example_batch(learner.agent, 2, 4))
    assert not metrics["finite"]
    assert learner.fault(metrics) == "loss_reconstruction"
    assert differences(learned(learner), before) == []


def test_a_fault_is_named_where_a_parameter_before_it_has_no_gradient() -> None:
    """Norms are those of parameters with a gradient, and so are the names."""
    learner = tiny_learner()
    first, second = learner.agent.encoder.parameters(), learner.agent.actor.parameters()
    next(first).requires_grad_(False)
    bad = next(second)
    bad.register_hook(torch.full_like(bad, math.inf).mul)
    metrics, _ = learner.update(example_batch(learner.agent, 2, 4))
    (name,) = (name for name, parameter in learner.agent.named_parameters() if parameter is bad)
    assert learner.fault(metrics) == f"gradient of {name}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_any_optimizer_trains(optimizer: MakeOptimizer | None) -> None:
    """And goes on from a saved state."""
    torch.manual_seed(0)
    learner = tiny_learner(optimizer=optimizer, warmup=0, learning_rate=1e-3)
    batch = example_batch(learner.agent, 2, 4)
    metrics = [learner.update(batch)[0] for _ in range(20)]
    assert metrics[-1]["objective"] < metrics[0]["objective"]
    other = tiny_learner(optimizer=optimizer, warmup=0, learning_rate=1e-3)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    learner.update(batch), other.update(batch)
    assert differences(learned(learner), learned(other)) == []
