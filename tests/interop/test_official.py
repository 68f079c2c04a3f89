"""Official checkpoints: all of one is loaded, it acts and learns on, and it can be written back bit for bit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import Recording
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, OneHot, Unbounded

from dreamer_torchrl.agents.agent import Size, build_agent
from dreamer_torchrl.interop.official import load_into, load_official, save_official_params
from dreamer_torchrl.interop.official_names import links
from dreamer_torchrl.interop.unpickle import find_checkpoint, load_arrays
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.learner import Learner, example_batch

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLE = GOLDEN / "official_checkpoint_sample"
CASES = ("proprio_cont", "vision_disc")
TINY = Size(belief=16, hidden=6, stochastic=4, classes=4, blocks=4, depth=2, units=10)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sample() -> Arrays:
    """The arrays of the official checkpoint, made after three updates."""
    return load_arrays(find_checkpoint(SAMPLE))["params"]


def recorded(case: str, part: str = "params0") -> Arrays:
    with np.load(GOLDEN / f"{case}_{part}.npz") as arrays:
        return dict(arrays)


def assert_same(ours: Arrays, theirs: Arrays) -> None:
    """Same names, types, shapes and bits."""
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert isinstance(ours[name], np.ndarray), name
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert ours[name].tobytes() == array.tobytes(), name


# Reading one


def test_a_checkpoint_a_mapping_or_an_npz_file_comes_back_bit_for_bit(sample: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", **sample)
    for place in (SAMPLE, sample, tmp_path / "weights.npz"):
        assert_same(save_official_params(load_official(place)), sample)


def test_everything_in_it_is_loaded(sample: Arrays) -> None:
    learner = load_official(SAMPLE)
    for link in links(learner.agent):
        state = learner.optimizer.state[link.parameter]
        for ours, name in (
            (link.parameter, link.name),
            (state["nu"], f"opt/state/1/1/{link.name}"),
            (state["mu"], f"opt/state/2/1/{link.name}"),
        ):
            assert torch.equal(ours.detach(), link.from_official(sample[name])), name
        assert state["step"] == 3 == sample["opt/step/value"]
    normalizer = learner.actor_loss.normalizer
    assert normalizer.low == float(sample["retnorm/lo/value"]) != 0
    assert normalizer.high == float(sample["retnorm/hi/value"]) != 0
    slow = {name: array for name, array in sample.items() if name.startswith("slowval/")}
    assert any((array != sample[name.removeprefix("slow")]).any() for name, array in slow.items())
    saved = save_official_params(learner)
    assert_same({name: saved[name] for name in slow}, slow)


def test_the_official_names_of_the_action_and_of_observations_are_kept(sample: Arrays) -> None:
    agent = load_official(sample).agent
    assert {key: space.shape for key, space in agent.spaces.items()} == {"vector": (5,)}
    assert {key: space.shape for key, space in agent.action_space.spaces.items()} == {"action": (3,)}
    agent = load_official(recorded("vision_disc")).agent
    # The official observation "state" would collide with the latent of that name.
    shapes = {("observation", "image"): (64, 64, 3), ("observation", "state"): (4,)}
    assert {key: space.shape for key, space in agent.spaces.items()} == shapes
    assert agent.action_space.spaces["action"].classes == (4,)


def test_without_a_slow_critic_and_a_normalizer_they_begin_as_the_official_ones(sample: Arrays) -> None:
    weights = {name: array for name, array in sample.items() if not name.startswith(("slowval", "retnorm", "opt"))}
    learner = load_official(weights)
    assert learner.actor_loss.normalizer.low == learner.actor_loss.normalizer.high == 0
    saved = save_official_params(learner)
    assert_same({name: saved[name] for name in weights}, weights)
    fast = {name: array for name, array in weights.items() if name.startswith("val/")}
    assert_same({name: saved[f"slow{name}"] for name in fast}, fast)


# Sizes


def test_the_number_of_state_variables_may_be_told() -> None:
    size = Size(belief=16, hidden=6, stochastic=5, classes=6, blocks=4, depth=4, units=10)
    learner = Learner(build_agent(Composite(vector=Unbounded((3,))), OneHot(2), size))
    arrays = save_official_params(learner)
    assert load_official(arrays, stochastic=5).agent.size == size
    for stochastic in (None, 7):  # may be 5 x 6 or 6 x 5; is not 7 x anything
        with pytest.raises(ValueError, match=r"30 state logits.* dyn\.rssm\.stoch as stochastic="):
            load_official(arrays, stochastic=stochastic)


def test_specs_say_what_shapes_do_not() -> None:
    seen = Composite(
        ego=Bounded(0, 255, (48, 64, 3), dtype=torch.uint8),
        item=Categorical(5, shape=()),
        slots=MultiCategorical([3, 3]),
    )
    action = Composite(buttons=MultiCategorical([4, 4]), gear=Categorical(3, shape=()), steer=Bounded(-1, 1, (2,)))
    learner = Learner(build_agent(seen, action, TINY), Hyperparameters.official())
    arrays = save_official_params(learner)
    with pytest.raises(ValueError, match="not square: give observation_spec="):
        load_official(arrays)
    again = load_official(arrays, seen, action)
    assert_same(save_official_params(again), arrays)
    assert again.agent.spaces == learner.agent.spaces
    assert again.agent.action_space.spaces == learner.agent.action_space.spaces
    batch = example_batch(again.agent, batch=2, length=3)
    noise = learner.draw_noise(2, 4)
    ours, theirs = (one.losses(batch, noise)[0] for one in (again, learner))
    assert_close(dict(ours), dict(theirs), rtol=0, atol=0)


# Going on from one


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_policy_acts_as_the_official_one(case: str) -> None:
    agent = load_official(GOLDEN / f"{case}_params0.npz").agent
    arrays = {key: torch.from_numpy(value) for key, value in recorded(case, "policy").items()}
    recording = Recording(GOLDEN, case)
    for now in ("t0", "t1"):
        t = {key.removeprefix(f"{now}/"): value for key, value in arrays.items() if key.startswith(now)}
        data = TensorDict(
            {
                "is_init": t["obs/is_first"].unsqueeze(-1),
                "belief": t["in/deter"],
                "state": t["in/stoch"],
                "previous_action": agent.action_space.flatten({"action": t["in/prevact"]}),
                **{key: t[f"obs/{name}"] for name, key in recording.observation_keys.items()},
            },
            batch_size=[3],
        )
        acted = agent.policy(data)
        assert_close(acted["belief"], t["out/deter"], rtol=2e-5, atol=2e-5)
        policy = agent.actor.distribution(agent.actor(agent.rssm.latent.features(t["out/deter"], t["out/stoch"])))
        for name in ("mean", "stddev", "logits"):
            if f"pol/action/{name}" in t:
                ours = getattr(policy.parts[0], name).reshape(t[f"pol/action/{name}"].shape)
                assert_close(ours, t[f"pol/action/{name}"], rtol=2e-5, atol=2e-5)


def test_training_goes_on() -> None:
    learner = load_official(SAMPLE)
    before = save_official_params(learner)
    metrics, latents = learner.update(example_batch(learner.agent, batch=2, length=4))
    assert all(metric.isfinite().all() for metric in metrics.values())
    after = save_official_params(learner)
    assert after["opt/step/value"] == after["opt/state/3/count"] == 4
    assert latents["state"].shape == (2, 4, 4)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("enc/", "dyn/", "dec/", "pol/", "val/", "retnorm/"))} <= moved
    # The momentum it came with counts: without it, another step is taken.
    fresh = load_official({name: array for name, array in before.items() if not name.startswith("opt/")})
    fresh.update(example_batch(fresh.agent, batch=2, length=4))
    assert not np.array_equal(save_official_params(fresh)["dyn/obs0/kernel"], after["dyn/obs0/kernel"])


# What is refused


@pytest.mark.parametrize("name", ["dyn/dyngru/kernel", "enc/mlp1norm/scale", "pol/head/action/stddev/bias"])
def test_a_missing_array_is_named(sample: Arrays, name: str) -> None:
    arrays = {key: array for key, array in sample.items() if key != name}
    with pytest.raises(KeyError, match=f"no array '{name}'"):
        load_official(arrays)


def test_foreign_arrays_are_named(sample: Arrays) -> None:
    extra = {"enc/mlp3/kernel": np.zeros((2, 2), "f4"), "dyn/prior2/bias": np.zeros(2, "f4")}
    with pytest.raises(ValueError, match=r"no place: dyn/prior2/bias, enc/mlp3/kernel\."):
        load_official(sample | extra)
    load_official(sample | {"advnorm/mean/value": np.zeros((), "f4")})  # of no part of the agent


def test_another_agent_is_refused(sample: Arrays) -> None:
    agent = build_agent(Composite(vector=Unbounded((5,))), Composite(action=Bounded(-1, 1, (3,))), TINY)
    with pytest.raises(ValueError, match=r"'enc/mlp0/kernel' has shape \[5, 16\], but this agent needs \[5, 10\]"):
        load_into(Learner(agent), sample)
    with pytest.raises(ValueError, match=r"'enc/mlp0/kernel' has shape \[5, 16\], but this agent needs \[6, 16\]"):
        load_official(sample, observation_spec=Composite(vector=Unbounded((6,))))
    with pytest.raises(ValueError, match="no place: dec/vec/vector/pred/bias"):
        load_official(sample, observation_spec=Composite(other=Unbounded((5,))))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        load_official(tmp_path / "nowhere")
    for content in ({"counters": {}}, [1, 2], {"params": [1]}):
        (tmp_path / "agent.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="holds no 'params': give the"):
            load_official(tmp_path / "agent.pkl")
