"""One update: it learns, it repeats itself bit for bit, it reads nothing back, and it refuses bad batches."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from dreamer_torchrl import Agent, Hyperparameters, Learner, Size, build_agent
from dreamer_torchrl.learner import example_batch, set_generator_state, total
from dreamer_torchrl.modules import observe

TINY = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)
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


def learner_for(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    observed: Composite | None = None,
    compile: bool = False,
    **options: Any,
) -> Learner:
    """A tiny one whose agent is the same at each call."""
    torch.manual_seed(0)
    observed = Composite(observation=Unbounded((3,))) if observed is None else observed
    agent = build_agent(observed, OneHot(2), TINY, dtype=dtype)
    return Learner(agent, Hyperparameters(**{"imagination_length": 3, "warmup": 0, **options}), seed, compile)


def weights(agent: Agent) -> TensorDict:
    return TensorDict(dict(agent.named_parameters())).data.clone()


def losses_of(batch: TensorDictBase, **options: Any) -> TensorDict:
    """Of the same tiny agent and the same noise at each call."""
    learner = learner_for(**options)
    return learner.losses(batch, learner.draw_noise(*batch.shape))[0].detach()


# It learns


@every_dtype
def test_a_tiny_agent_overfits_one_batch(dtype: torch.dtype) -> None:
    """Image, floats and class; floats, one-hot and class as action: all that can be learned of noise is learned.

    Not the actor's loss: what it is compared with, the critic, moves along. The critic's own loss is weighted by how
    likely the dream goes on, which has to be learned too; it falls per unit of that weight.
    """
    learner = Learner(build_agent(SEEN, DONE, SMALL, dtype=dtype), FAST)
    batch = example_batch(learner.agent, batch=3, length=6)
    history = torch.stack([learner.update(batch)[0] for _ in range(100)])  # [100]
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


def test_first_update_of_a_warm_up_moves_nothing_but_the_statistics() -> None:
    learner = learner_for(warmup=1000)
    before = weights(learner.agent)
    learner.update(example_batch(learner.agent, batch=2, length=4))
    assert (weights(learner.agent) == before).all()
    assert learner.optimizer.state_dict()["state"][0]["step"] == 1


def test_slow_critic_follows_the_critic() -> None:
    learner = learner_for(slow_rate=0.1, learning_rate=1e-2)
    loss = learner.value_loss
    assert (loss.target_value_params.data == loss.value_params.data).all()
    before = loss.target_value_params.data.clone()
    learner.update(example_batch(learner.agent, batch=2, length=4))
    assert_close(loss.target_value_params.data, before.lerp(loss.value_params.data, 0.1))
    assert not (loss.target_value_params.data == loss.value_params.data).all()


@pytest.mark.parametrize("slow_target", [False, True])
def test_slow_target_puts_the_slow_critic_into_the_returns(slow_target: bool) -> None:
    batch = example_batch(learner_for().agent, batch=2, length=4)
    learner = learner_for(slow_target=slow_target)
    noise = learner.draw_noise(*batch.shape)
    before, _ = learner.losses(batch, noise)
    learner.value_loss.target_value_params.data["module", "logits", "bias"][140] += 10  # it expects much
    after, _ = learner.losses(batch, noise)
    assert before["imagined_value"] == 0
    assert (after["imagined_value"] > 1) == slow_target


# What comes out


@every_dtype
def test_metrics_are_float32_numbers_without_a_graph(dtype: torch.dtype) -> None:
    learner = learner_for(dtype=dtype)
    metrics, _ = learner.update(example_batch(learner.agent, batch=2, length=4))
    assert set(metrics.keys()) >= LOSSES | {"objective", "entropy", "return_scale", "reconstruction/observation"}
    for name, value in metrics.items():
        assert (name, value.shape, value.dtype, value.requires_grad) == (name, (), torch.float32, False)
    objective = sum(metrics[name] for name in LOSSES)
    assert_close(metrics["objective"], objective)
    assert {name for name, _ in metrics.items() if name.startswith("loss_")} == LOSSES


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


@every_dtype
def test_parameters_and_statistics_stay_float32(dtype: torch.dtype) -> None:
    learner = learner_for(dtype=dtype)
    learner.update(example_batch(learner.agent, batch=2, length=4))
    state = learner.state_dict()
    tensors = [*state["agent"].values(), *state["slow_value"].values(), *state["return_normalizer"].values()]
    tensors += [value for slots in state["optimizer"]["state"].values() for value in slots.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize("key", ["observation", "reward", "belief"])
def test_float64_data_gives_float32_losses(key: str) -> None:
    """dm_control sees in float64."""
    batch = example_batch(learner_for().agent, batch=2, length=4)
    losses = losses_of(batch.clone().update({key: batch[key].double()}))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert_close(losses, losses_of(batch))


def test_a_batch_is_left_as_it_was() -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    before = batch.clone()
    learner.update(batch)
    assert set(batch.keys(True)) == set(before.keys(True))
    assert (batch == before).all()


# Repetition


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


@pytest.mark.parametrize("key", ["belief", "state"])
@pytest.mark.parametrize(("step", "matters"), [(0, True), (1, False), (4, False)])
def test_only_the_contexts_latents_matter(key: str, step: int, matters: bool) -> None:
    batch = example_batch(learner_for().agent, batch=2, length=4)
    batch["is_init"][:] = False
    other = batch.clone()
    other[key][:, step] = 1 - other[key][:, step]
    if key == "state":
        other[key] %= 3
    assert (losses_of(batch) == losses_of(other)).all() != matters


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


def test_a_start_at_the_first_trained_step_makes_the_context_irrelevant() -> None:
    batch = example_batch(learner_for().agent, batch=2, length=4)
    batch["is_init"][:, 1] = True
    other = batch.clone()
    other["belief"][:, 0] += 1
    other["state"][:, 0] = (other["state"][:, 0] + 1) % 3
    other["action"][:, 0] ^= True
    assert (losses_of(batch) == losses_of(other)).all()


def test_without_context_a_sequence_starts_from_nothing() -> None:
    """Stored latents are not needed, and the first step is an episode's whether it says so or not."""
    batch = example_batch(learner_for().agent, batch=2, length=4)
    bare = batch.exclude("belief", "state")
    bare["is_init"][:, 0] = False
    _, latents = learner_for(context=0).update(bare)
    assert latents.batch_size == (2, 5)

    with_context = torch.cat([batch[:, :1], batch], 1)
    with_context["is_init"][:, 1] = True
    noise = learner_for().draw_noise(2, 6)
    expected, _ = learner_for().losses(with_context, noise)
    found, _ = learner_for(context=0).losses(bare, noise[:, 1:])
    assert_close(found, expected)


# On a GPU


class NoHostRead(TorchDispatchMode):
    """Raises on whatever would make a GPU wait for Python: values read, and shapes that depend on values."""

    forbidden = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [
            index
            for index in (args[1] if function is torch.ops.aten.index.Tensor else ())
            if index is not None and index.dtype in (torch.bool, torch.uint8)
        ]
        read = function.overloadpacket.__name__ in self.forbidden or masks
        if read and not OneHotPardon.active:
            raise AssertionError(f"{function} reads a value back")
        return function(*args, **(kwargs or {}))


class OneHotPardon(TorchFunctionMode):
    """``F.one_hot`` looks at its input on the CPU only, to check it."""

    active = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, OneHotPardon.active = OneHotPardon.active, OneHotPardon.active or function is F.one_hot
        try:
            return function(*args, **(kwargs or {}))
        finally:
            OneHotPardon.active = before


@pytest.mark.parametrize("slow_target", [False, True])
@every_dtype
def test_an_update_reads_no_value_back(dtype: torch.dtype, slow_target: bool) -> None:
    """All but the check of the batch, which is left out where the batch is not in the CPU's memory."""
    options = Hyperparameters(imagination_length=3, slow_target=slow_target)
    learner = Learner(build_agent(SEEN, DONE, TINY, dtype=dtype), options)
    batch = example_batch(learner.agent, batch=2, length=4)
    with NoHostRead(), OneHotPardon():
        losses, _ = learner.losses(batch, learner.draw_noise(*batch.shape))
        total(losses).backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        learner.slow_update.step()


def test_no_host_read_notices_one() -> None:
    for read in (Tensor.item, Tensor.nonzero, bool, lambda x: x[x > 0], lambda x: torch.equal(x, x)):
        with pytest.raises(AssertionError, match="reads a value back"), NoHostRead(), OneHotPardon():
            read(torch.ones(1))


# Bad batches


@pytest.mark.parametrize("key", ["observation", "action", "reward", "is_init", "terminated", "done", "belief", "state"])
def test_a_missing_entry_is_named_with_what_is_there(key: str) -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    others = ", ".join(sorted(set(batch.keys()) - {key}))
    with pytest.raises(KeyError, match=f"needs {key}, but the data holds {others}"):
        learner.update(batch.exclude(key))


def test_a_stored_state_that_is_no_class_is_named_with_its_place() -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    batch["state"][1, 2, 0] = TINY.classes
    with pytest.raises(ValueError, match=r"'state' is outside its classes.* at row 1, step 2"):
        learner.update(batch)


@pytest.mark.parametrize("key", ["observation", "reward", "belief"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_with_its_place(key: str, value: float) -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    batch[key][1, 3] = value
    with pytest.raises(ValueError, match=f"{key!r} is not finite at row 1, step 3"):
        learner.update(batch)


@pytest.mark.parametrize(
    ("key", "bend", "message"),
    [
        ("observation", lambda value: value[..., :2], r"'observation' has shape \[2\] per step.* for \[3\]"),
        ("action", lambda value: value[..., :1], r"'action' has shape \[1\] per step.* for \[2\]"),
        ("action", lambda value: value.int().argmax(-1), r"'action' has shape \[\] per step.* for \[2\]"),
        ("reward", lambda value: value.squeeze(-1), r"'reward' has shape \[\] per step.* for \[1\]"),
        ("is_init", lambda value: value.squeeze(-1), r"'is_init' has shape \[\] per step.* for \[1\]"),
        ("terminated", lambda value: value.squeeze(-1), r"'terminated' has shape \[\] per step.* for \[1\]"),
        ("done", lambda value: value.squeeze(-1), r"'done' has shape \[\] per step.* for \[1\]"),
        ("belief", lambda value: value[..., :8], r"'belief' has shape \[8\] per step.* for \[16\]"),
        ("state", lambda value: value[..., :3], r"'state' has shape \[3\] per step.* for \[4\]"),
        ("is_init", lambda value: value.to(torch.uint8), "'is_init' has dtype torch.uint8.*bool"),
        ("terminated", lambda value: value.float(), "'terminated' has dtype torch.float32.*bool"),
        ("done", lambda value: value.to(torch.uint8), "'done' has dtype torch.uint8.*bool"),
    ],
)
def test_an_entry_of_the_wrong_form_is_named(key: NestedKey, bend: Callable[[Tensor], Tensor], message: str) -> None:
    learner = learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    with pytest.raises(ValueError, match=message):
        learner.update(batch.clone().update({key: bend(batch[key])}))


@pytest.mark.parametrize("select", [lambda batch: batch[0], lambda batch: batch[None], lambda batch: batch[:, :2]])
def test_a_batch_of_the_wrong_shape_is_told_the_right_one(select: Callable[[TensorDict], TensorDict]) -> None:
    learner = learner_for()
    batch = select(example_batch(learner.agent, batch=2, length=4))
    with pytest.raises(ValueError, match=r"A batch must be \[B, context \+ T\]"):
        learner.update(batch)


def test_the_generator_of_another_kind_of_device_seeds_this_one() -> None:
    """A run that was saved on a GPU, whose generators have a state of 16 bytes, goes on here, each time alike."""

    def drawn(state: Tensor) -> list[float]:
        generator = torch.Generator()
        set_generator_state(generator, state)
        return torch.rand(3, generator=generator).tolist()

    first, second = (torch.arange(start, start + 16, dtype=torch.uint8) for start in (0, 1))
    assert drawn(first) == drawn(first) != drawn(second)


def test_a_refused_batch_does_no_harm() -> None:
    learner, same = learner_for(), learner_for()
    batch = example_batch(learner.agent, batch=2, length=4)
    bad = batch.clone()
    bad["observation"][0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        learner.update(bad)
    learner.update(batch)
    same.update(batch)
    assert (weights(learner.agent) == weights(same.agent)).all()


@pytest.mark.parametrize("key", ["features", "noise", "previous", "encoded_latents", "reconstruction"])
def test_an_observation_may_not_have_a_name_that_the_update_writes(key: str) -> None:
    """Or else it is overwritten on the way."""
    with pytest.raises(ValueError, match=f"observation {key!r}.*RenameTransform"):
        build_agent(Composite({key: Unbounded((3,))}), OneHot(2), TINY)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_update_gives_the_same_numbers() -> None:
    """Compiled are the networks and one step of each loop; only the rounding may differ."""
    learners = [learner_for(compile=compiled) for compiled in (False, True)]
    batch = example_batch(learners[0].agent, batch=2, length=4)
    for _ in range(2):
        eager, compiled = (learner.update(batch) for learner in learners)
        torch.testing.assert_close(compiled[0].to_dict(), eager[0].to_dict(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled[1].to_dict(), eager[1].to_dict(), rtol=1e-4, atol=1e-5)
