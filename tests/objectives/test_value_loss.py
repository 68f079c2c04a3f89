"""The critic's loss: official numbers, every argument's effect, its slow copy, and whom it teaches."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.objectives import SoftUpdate

from dreamer_torchrl.learners.learner import Learner, example_batch
from dreamer_torchrl.modules.heads import TwoHotHead
from dreamer_torchrl.objectives import ValueLoss
from dreamer_torchrl.objectives.value import SlowUpdate
from tests.objectives.examples import RecordedCritic, golden, part, taught_by, tiny_learner


def test_official_replay_loss() -> None:
    table = golden("tables_losses.npz")
    t = part(table, "repl_loss/in/")
    shape = t["rew"].shape
    value = TensorDictModule(RecordedCritic(t["value_logits"]), ["features"], ["state_value_logits", "state_value"])
    loss = ValueLoss(value, replay_scale=1.0)
    SoftUpdate(loss, tau=0.02)
    loss.target_value_params["module", "logits"].data.copy_(t["slowvalue_logits"].flatten(0, -2))
    steps = {"reward": t["rew"], "bootstrap": t["boot"], "terminated": t["term"], "done": t["last"]}
    data = TensorDict({key: step.unsqueeze(-1) for key, step in steps.items()}, shape)
    data["features"] = torch.arange(shape.numel()).view(*shape, 1).float()
    data["imagination"] = dream(features=torch.zeros(*shape, 3, 1))
    assert_close(loss(data)[0]["loss_replay_value"], table["repl_loss/repval"].mean(), rtol=1e-5, atol=1e-5)


def dream(features: Tensor, **given: Tensor) -> TensorDict:
    """An imagination ``[..., H + 1]`` with random returns and weights."""
    batch = features.shape[:-1]
    generator = torch.Generator().manual_seed(1)
    target, weight = torch.rand(2, *batch, 1, generator=generator)
    entries = {"lambda_target": 4 * target - 2, "discount_weight": weight}
    return TensorDict({"features": features, **entries, **given}, batch)


def example() -> TensorDict:
    """Data ``[3, 4]`` with dreams of two steps, of which one episode is truncated and one terminated."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDict({"features": torch.randn(3, 4, 6, generator=generator)}, [3, 4])
    data["reward"], data["bootstrap"] = torch.randn(2, 3, 4, 1, generator=generator)
    data["terminated"], data["done"] = torch.zeros(2, 3, 4, 1, dtype=torch.bool)
    data["done"][0, 1] = data["done"][1, 2] = data["terminated"][1, 2] = True
    data["imagination"] = dream(torch.randn(3, 4, 3, 6, generator=generator))
    return data


def critic(bins: int = 255) -> TwoHotHead:
    head = TwoHotHead(6, units=8, layers=1, bins=bins)
    nn.init.normal_(head.logits.weight)
    return head


def value_loss(head: TwoHotHead | None = None, **options: Any) -> ValueLoss:
    """A loss with a slow critic that is not the critic."""
    loss = ValueLoss((head or critic(options.get("bins", 255))).tensordict_module(), **options)
    SoftUpdate(loss, tau=0.02)
    shift(loss)
    return loss


def shift(loss: ValueLoss) -> None:
    """Move the slow critic, its bins excepted."""
    for key, parameter in loss.target_value_params.items(True, True):
        if key[-1] != "bins":
            parameter.data.add_(0.3 * torch.randn_like(parameter))


def losses(data: TensorDict | None = None, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return value_loss(**options)(example() if data is None else data)[0].to_dict()


@pytest.mark.parametrize("slow_scale", [0.0, 2.0])
def test_slow_scale_weighs_the_slow_critics_word(slow_scale: float) -> None:
    """In both terms."""
    none, one, found = (losses(slow_scale=scale) for scale in (0.0, 1.0, slow_scale))
    for key in ("loss_value", "loss_replay_value"):
        assert one[key] > none[key]
        assert_close(found[key], none[key] + slow_scale * (one[key] - none[key]))


def test_without_replay_scale_no_replay_is_needed() -> None:
    loss = value_loss(replay_scale=0)
    assert loss.out_keys == ["loss_value"]
    assert all(key[0] == "imagination" for key in loss.in_keys)
    found, _ = loss(example().select("imagination"))
    assert list(found.keys()) == ["loss_value"]
    assert found["loss_value"] == losses()["loss_value"]


def value_losses(learner: Learner) -> TensorDict:
    batch = example_batch(learner.agent, batch=2, length=4)
    _, data = learner.world_model_loss(batch.set("noise", learner.draw_noise(2, 5)))
    return learner.value_loss(learner.actor_loss(data)[1])[0]


@pytest.mark.parametrize(
    ("term", "replay_grad", "taught"),
    [
        ("value", True, {"value"}),
        ("replay_value", True, {"value", "encoder", "rssm"}),  # neither decoder nor heads nor actor
        ("replay_value", False, {"value"}),
    ],
)
def test_each_term_teaches_the_critic_and_replay_the_latents_too(term: str, replay_grad: bool, taught: set) -> None:
    learner = tiny_learner(replay_value_grad=replay_grad)
    assert taught_by(value_losses(learner)[f"loss_{term}"], learner.agent) == taught


def test_slow_critic_learns_nothing() -> None:
    """Not even after it was used: an updater made later would refuse weights that are part of a graph."""
    loss = value_loss()
    sum(loss(example())[0].values()).backward()
    slow = list(loss.target_value_params.values(True, True))
    assert all(parameter.grad is None for parameter in slow)
    assert not any(parameter.requires_grad for parameter in slow)
    SoftUpdate(loss, tau=0.02)


def test_logits_in_the_dream_save_work_and_change_nothing() -> None:
    """`ActorLoss` leaves them there, with their graph."""
    loss, data = value_loss(head := critic(), replay_scale=0), example()
    loss(data)[0]["loss_value"].backward()
    expected = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    head.tensordict_module()(data["imagination"])
    loss(data)[0]["loss_value"].backward()
    for parameter, gradient in zip(head.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


def test_all_keys_may_be_others() -> None:
    """A head made for nested keys and `set_keys` give the same losses."""
    key: dict[str, NestedKey] = {field.name: ("renamed", field.name) for field in fields(ValueLoss.default_keys)}
    head = critic()
    usual = ValueLoss(head.tensordict_module())
    outputs = (key["state_value_logits"], key["state_value"])
    renamed = ValueLoss(head.tensordict_module([key["features"]], outputs))
    renamed.set_keys(**key)
    for loss in (usual, renamed):
        SoftUpdate(loss, tau=0.02)
    data = example()
    moved = TensorDict({key[name]: data[name] for name in data.exclude("imagination").to_dict()}, data.shape)
    imagined = data["imagination"]
    moved[key["imagination"]] = TensorDict({key[name]: imagined[name] for name in imagined.to_dict()}, imagined.shape)
    assert renamed.in_keys[0] == ("renamed", "imagination", "renamed", "features")
    found, expected = renamed(moved)[0], usual(data)[0]
    assert found["loss_value"] == expected["loss_value"]
    assert found["loss_replay_value"] == expected["loss_replay_value"]
    slow = renamed.slow_value()(TensorDict({key["features"]: data["features"]}, data.shape))
    assert slow[key["state_value"]].equal(usual.predict_slow(data["features"])[1])


@pytest.mark.parametrize(
    ("missing", "named"),
    [("bootstrap", "bootstrap"), ("imagination", "imagination/features, imagination/lambda_target")],
)
def test_missing_entry_is_named(missing: str, named: str) -> None:
    with pytest.raises(KeyError, match=f"ValueLoss needs {named}"):
        value_loss()(example().exclude(missing))


@pytest.mark.parametrize(
    "data", [example()[0], example()[:, :1], example().unsqueeze(0)], ids=["no_time", "one_step", "three_dimensions"]
)
def test_replay_needs_a_sequence(data: TensorDict) -> None:
    """Of at least two steps, or there is no return; with one more dimension, time would be looked for in another."""
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        value_loss()(data)
    value_loss(replay_scale=0)(data)


SLOW_TARGETS = json.loads((Path(__file__).parents[1] / "golden_family/tables_v2.json").read_text())


def followed(name: str, copy_first: bool = True, called_off: bool = False) -> list[float]:
    """The target along a recorded sequence of critics; each update can be called off once before it happens."""
    table = SLOW_TARGETS[name]
    every, fraction = re.fullmatch(r"slow_target/update(\d+)_fraction([\d.]+)", name).groups()
    loss = ValueLoss(critic().tensordict_module(), replay_scale=0)
    update = SlowUpdate(loss, float(fraction), int(every), copy_first)
    for value in update.slow.values():
        value.fill_(table["initial_target"])
    found = []
    for value in table["critic_at_each_call"]:
        for parameter in update.fast:
            parameter.data.fill_(value)
        if called_off:
            update.step(torch.tensor(False))
        update.step(torch.tensor(True) if called_off else None)
        (same,) = {value for parameter in update.slow.values() for value in parameter.unique().tolist()}
        found.append(same)
        state = {key: value.clone() for key, value in update.state_dict().items()}
        update = SlowUpdate(loss, float(fraction), int(every), copy_first)
        update.load_state_dict(state)  # every step goes on from what the last one saved
    return found


@pytest.mark.parametrize("called_off", [False, True])
@pytest.mark.parametrize("name", [name for name in SLOW_TARGETS if name.startswith("slow_target/")])
def test_official_targets_of_v2(name: str, called_off: bool) -> None:
    """The first update copies; then one in so many, counted from the first one, mixes."""
    wanted = SLOW_TARGETS[name]["target_after_each_call"]
    assert followed(name, called_off=called_off) == pytest.approx(wanted, rel=1e-5)
    assert followed(name, copy_first=False) != pytest.approx(wanted, rel=1e-2) or name.endswith("1.0")


def test_the_target_without_options_saves_what_it_did() -> None:
    update = SlowUpdate(value_loss(), 0.02)
    assert update.state_dict().keys() == update.slow.keys()
