"""The actor acts in any action spec: continuous, discrete, several at once."""

from __future__ import annotations

import pytest
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn
from torch import distributions as td
from torch.testing import assert_close
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.modules import ActionDistribution, ActionSpace, Actor
from tests.objectives.examples import golden, part

ARM = Composite(joints=Bounded(-1, 1, (2, 2)), grip=OneHot(2), tool=MultiCategorical([2, 4]))
MANY = Composite(steer=Bounded(-1, 1, (2,)), gear=Categorical(3), arm=ARM, buttons=Binary(2))
# Specs, and what their variables are in the order of the flat action: 0 for a float, else its number of classes.
CASES: dict[str, tuple[TensorSpec, list[int]]] = {
    "continuous": (Bounded(-1, 1, (3,)), [0, 0, 0]),
    "continuous_matrix": (Bounded(-1, 1, (2, 3)), [0] * 6),
    "one_hot": (OneHot(4), [4]),
    "categorical": (Categorical(4), [4]),
    "categorical_int32": (Categorical(4, shape=(2,), dtype=torch.int32), [4, 4]),
    "multi_categorical": (MultiCategorical([2, 5, 3]), [2, 5, 3]),
    "multi_one_hot": (MultiOneHot([2, 5, 3]), [2, 5, 3]),
    "binary": (Binary(3), [2, 2, 2]),
    "composite": (MANY, [2, 0, 0, 0, 0, 2, 4, 2, 2, 3, 0, 0]),  # arm/grip, joints, tool, buttons, gear, steer
}
SPECS = {name: spec for name, (spec, _) in CASES.items()}
VARIABLES = {name: variables for name, (_, variables) in CASES.items()}
every_spec = pytest.mark.parametrize("name", SPECS)


def actor_for(name: str, **options: float) -> Actor:
    """An actor in float64 whose outputs are far from 0."""
    torch.manual_seed(0)
    actor = Actor(6, ActionSpace(SPECS[name]), units=8, **options).double()
    for parameter in actor.parameters():
        nn.init.normal_(parameter, std=0.7)
    return actor


def policy_for(name: str, *batch: int, **options: float) -> ActionDistribution:
    actor = actor_for(name, **options)
    return actor.distribution(actor(torch.randn(*batch, 6, dtype=torch.float64)))


def runs(variables: list[int]) -> list[tuple[int, int]]:
    """Pairs (classes, length) of neighbouring floats, and of each class variable alone."""
    found: list[tuple[int, int]] = []
    for classes in variables:
        if classes == 0 and found and found[-1][0] == 0:
            found[-1] = (0, found[-1][1] + 1)
        else:
            found.append((classes, 1))
    return found


def torch_distributions(parameters: Tensor, name: str) -> list[td.Distribution]:
    """Torch's own distribution for each run of variables, in the order of the flat action."""
    result = []
    for classes, length in runs(VARIABLES[name]):
        size = classes or 2 * length
        now, parameters = parameters[..., :size], parameters[..., size:]
        if classes:
            result.append(td.OneHotCategorical(logits=now))
        else:
            mean, std = now.chunk(2, -1)
            result.append(td.Independent(td.Normal(mean.tanh(), 0.9 * torch.sigmoid(std + 2) + 0.1), 1))
    assert parameters.shape[-1] == 0
    return result


@every_spec
def test_sizes_follow_the_spec(name: str) -> None:
    space, variables = ActionSpace(SPECS[name]), VARIABLES[name]
    assert space.size == sum(classes or 1 for classes in variables)
    assert space.noise_size == len(variables)
    assert space.parameter_size == sum(classes or 2 for classes in variables)


def as_action(name: str, values: dict[NestedKey, Tensor]) -> Tensor | TensorDict:
    return TensorDict(values) if isinstance(SPECS[name], Composite) else values["action"]


@every_spec
def test_an_action_survives_flatten_and_restore(name: str) -> None:
    space = ActionSpace(SPECS[name])
    drawn = SPECS[name].rand()
    values = {key: drawn[key] for key in space.keys} if isinstance(SPECS[name], Composite) else {"action": drawn}
    flat = space.flatten(values)
    assert flat.shape == (space.size,)
    back = space.restore(flat)
    assert list(back) == space.keys
    for key, value in values.items():
        assert_close(back[key], value, rtol=0, atol=0)  # dtype and shape included
    assert SPECS[name].is_in(as_action(name, back))


def test_keys_are_nested_and_sorted() -> None:
    space = ActionSpace(SPECS["composite"])
    assert space.keys == [("arm", "grip"), ("arm", "joints"), ("arm", "tool"), "buttons", "gear", "steer"]
    assert ActionSpace(OneHot(3)).keys == ["action"]
    flat = torch.tensor([0, 1, 0.25, 0.5, 0.75, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1, -0.5, 0.5])
    assert {key: value.tolist() for key, value in space.restore(flat).items()} == {
        ("arm", "grip"): [False, True],
        ("arm", "joints"): [[0.25, 0.5], [0.75, 1.0]],
        ("arm", "tool"): [0, 3],
        "buttons": [0, 1],
        "gear": 2,
        "steer": [-0.5, 0.5],
    }


@every_spec
def test_noise_is_uniform_for_classes_and_normal_for_floats(name: str) -> None:
    space = ActionSpace(SPECS[name])
    noise = space.noise(20, 50, generator=torch.Generator().manual_seed(0))
    assert noise.shape == (20, 50, space.noise_size)
    assert noise.equal(space.noise(20, 50, generator=torch.Generator().manual_seed(0)))
    for column, classes in zip(noise.flatten(0, 1).unbind(-1), VARIABLES[name], strict=True):
        if classes:
            assert 0 <= column.min() < 0.02 and 0.98 < column.max() < 1
        else:
            assert column.mean().abs() < 0.15 and (column.std() - 1).abs() < 0.1


@every_spec
def test_exploration_moves_floats_and_draws_classes_anew(name: str) -> None:
    """Each variable by its own noise: floats by a normal and not past 1, classes uniformly with that probability."""
    space, variables = ActionSpace(SPECS[name]), VARIABLES[name]
    sizes = [classes or 1 for classes in variables]
    flat = policy_for(name).sample().clamp(-1, 1).expand(20_000, -1)
    noise = space.noise(20_000).double()
    found = space.explored(flat, 0.3, noise)
    columns = zip(variables, found.split(sizes, -1), flat.split(sizes, -1), noise.split(1, -1), strict=True)
    for classes, explored, action, drawn in columns:
        if classes:
            assert (explored.sum(-1) == 1).all()
            assert_close(explored.mean(0), 0.3 / classes + 0.7 * action[0], rtol=0, atol=0.02)
        else:
            assert_close(explored, (action + 0.3 * drawn).clamp(-1, 1))
    assert_close(space.explored(flat, 0.0, noise), flat)


def test_exploration_noise_is_official() -> None:
    """Noise first, bounds after it; classes with the recorded probabilities."""
    t = part(golden("tables_v2.npz", "golden_family"), "action_noise/")
    floats, amount = ActionSpace(Bounded(-1, 1, (2,))), t["cont/amount"].item()
    assert_close(floats.explored(t["cont/action"], amount, t["cont/eps"]), t["cont/out"])
    assert not (t["cont/action"].clamp(-1, 1) + amount * t["cont/eps"]).allclose(t["cont/out"])
    uniforms = ((torch.arange(1000) + 0.5) / 1000).view(-1, 1, 1).expand(-1, 6, 1)
    actions = t["disc/action"].expand(1000, -1, -1)
    drawn = ActionSpace(OneHot(5)).explored(actions, t["disc/amount"].item(), uniforms)
    assert_close(drawn.mean(0), t["disc/probs"], rtol=0, atol=2e-3)


@every_spec
def test_each_variable_reads_its_own_noise(name: str) -> None:
    policy = policy_for(name)
    noise = torch.full((policy.space.noise_size,), 0.5, dtype=torch.float64)
    first = policy.sample(noise).split([classes or 1 for classes in VARIABLES[name]], -1)
    for i, classes in enumerate(VARIABLES[name]):
        changed = noise.clone()
        changed[i] = 0.0
        lowest = policy.sample(changed).split([classes or 1 for classes in VARIABLES[name]], -1)
        assert [j for j in range(len(first)) if j != i and not lowest[j].equal(first[j])] == []
        if classes:
            assert lowest[i].argmax() == 0
        else:
            assert not lowest[i].equal(first[i])


@every_spec
def test_log_prob_and_entropy_agree_with_torch(name: str) -> None:
    policy = policy_for(name, 2, 7)
    value = policy.sample()
    theirs = torch_distributions(policy.parameters, name)
    chunks = value.split([dist.event_shape.numel() for dist in theirs], -1)
    assert_close(policy.log_prob(value), sum(d.log_prob(x) for d, x in zip(theirs, chunks, strict=True)))
    assert_close(policy.entropy(), sum(d.entropy() for d in theirs))
    assert_close(policy.mean, torch.cat([d.mean for d in theirs], -1))
    modes = [d.mean if isinstance(d, td.Independent) else d.mode for d in theirs]
    assert_close(policy.mode, torch.cat(modes, -1))
    assert (policy.batch_shape, policy.event_shape) == ((2, 7), (policy.space.size,))


@every_spec
@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_entropy_stays_in_its_range(name: str, unimix: float) -> None:
    """Both ends are reached: by parameters that choose one class and the least deviation, and by the opposite."""
    space = policy_for(name).space
    found = []
    for end, stddev in enumerate((-100.0, 100.0)):
        parts = []
        for count, classes in space.parts:
            if classes:
                parts.append((100.0 * (1 - end) * torch.eye(classes)[0]).repeat(count))
            else:
                parts.append(torch.tensor([0.0] * count + [stddev] * count))
        found.append(ActionDistribution(torch.cat(parts).double(), space, unimix).entropy().item())
    assert found == pytest.approx(ActionDistribution(torch.cat(parts), space, unimix).entropy_range, abs=1e-9)


@every_spec
def test_the_probabilistic_actor_draws_and_tells_its_distribution(name: str) -> None:
    actor = actor_for(name)
    module = actor.probabilistic_module()
    data = TensorDict(features=torch.randn(7, 6, dtype=torch.float64), batch_size=[7])
    policy = module.get_dist(data.clone())
    assert isinstance(policy, ActionDistribution)
    assert_close(policy.parameters, actor(data["features"]))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert_close(module(data.clone())["action"], policy.mode)
    with set_exploration_type(ExplorationType.RANDOM):
        first, second = module(data.clone())["action"], module(data.clone())["action"]
    assert not first.equal(second)
    assert first.requires_grad
