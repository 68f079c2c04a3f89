"""An exported policy is one file that does the same as the agent, and needs torch alone."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent, Size
from dreamer_torchrl.agents.exporting import compare, describe, export_policy
from dreamer_torchrl.agents.player import as_indices
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.keys import LATENTS
from dreamer_torchrl.modules.spaces import key_name
from tests.agents.acting_examples import agent_for, recorded, stream

MODES = {False: ExplorationType.DETERMINISTIC, True: ExplorationType.RANDOM}
NANO = Size.named("nano")
CASES = [("CartPole-v1", False), ("Pendulum-v1", True), ("crane", False), ("crane", True), ("multi_discrete", True)]
SLOW = CASES[2:]
every_case = pytest.mark.parametrize(
    ("name", "sample"),
    [
        pytest.param(n, s, id=f"{n}-{'draws' if s else 'modes'}", marks=[pytest.mark.slow] * ((n, s) in SLOW))
        for n, s in CASES
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the exported policies of this file lie."""
    return tmp_path_factory.mktemp("exported")


@cache
def exported(folder: Path, name: str, sample: bool) -> tuple[Agent, Path]:
    """A nano agent and its policy in a file, made once."""
    torch.manual_seed(1)
    agent = agent_for(name, size=NANO)
    return agent, export_policy(agent, folder / f"{name}-{sample}.pt2", sample, stream(name).bounds)


@cache
def loaded(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Policy and description as any user of torch has them."""
    files = {"policy.json": ""}
    return torch.export.load(path, extra_files=files).module(), json.loads(files["policy.json"])


def noise_of(agent: Agent, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.rand(count, agent.rssm.stochastic, generator=generator)
    return noise, agent.action_space.noise(count, generator=generator)


# The same as the agent


@every_case
def test_does_what_the_agent_does(folder: Path, name: str, sample: bool) -> None:
    """Over several steps, an episode's start among them, for any number of environments; from the same noise if any."""
    count = 1 if name == "crane" else 3
    agent, path = exported(folder, name, sample)
    policy, _ = loaded(path)
    draws = torch.Generator().manual_seed(3)
    original = Policy(agent.encoder, agent.rssm, agent.actor, torch.Generator().manual_seed(3))
    carried = TensorDict({}, batch_size=[count])
    latents = [torch.zeros(count, *agent.latent_spec[key].shape) for key in LATENTS]
    for step in recorded(agent, 6, count):
        with set_exploration_type(MODES[sample]):
            carried = original(step.clone().update(carried)).select(*LATENTS, *agent.action_space.keys)
        noise = noise_of(agent, count, draws) if sample else ()
        seen = {key_name(key): step[key] for key in agent.spaces}
        if name == "crane":
            seen["hook/load"] = seen["hook/load"].argmax(-1)
        actions, *latents = policy(seen, step["is_init"], *latents, *noise)
        for key, value in zip(LATENTS, latents, strict=True):
            assert_close(value, carried[key], atol=1e-6, rtol=0)
            assert value.dtype is torch.float32 and not value.requires_grad
        for key, space in agent.action_space.spaces.items():
            found, expected = actions[key_name(key)], carried[key]
            if key in (bounds := stream(name).bounds):
                low, high = bounds[key]
                assert_close(found, low + (high - low) * (expected.clamp(-1, 1) + 1) / 2)
            elif as_indices(space) is space:
                assert found.equal(expected)
            elif found.ndim == 1:
                assert found.equal(expected.argmax(-1))
            else:
                parts = expected.split(list(space.classes), -1)
                assert found.equal(torch.stack([part.argmax(-1) for part in parts], -1))


@pytest.mark.slow
def test_bfloat16_agents_can_be_exported(tmp_path: Path) -> None:
    agent = agent_for("Pendulum-v1", dtype=torch.bfloat16)
    path = export_policy(agent, tmp_path / "policy.pt2")
    assert compare(agent, path) < 1e-5


# Without this package


CHILD = """
import json, sys
for name in ("dreamer_torchrl", "torchrl", "tensordict", "gymnasium"):
    sys.modules[name] = None  # an import of it fails
import torch
words = {"policy.json": ""}
policy = torch.export.load(sys.argv[1], extra_files=words).module()
inputs = json.loads(words["policy.json"])["inputs"]
def zeros(entry):
    return torch.zeros(3, *entry["shape"][1:], dtype=getattr(torch, entry["dtype"]))
observations = {name: zeros(entry) for name, entry in inputs.pop("observations").items()}
generator, noise = torch.Generator().manual_seed(0), {}
for name in ("noise", "action_noise"):
    draws = {"uniform": torch.rand, "normal": torch.randn}
    parts = [draws[kind](3, count, generator=generator) for kind, count in inputs[name].pop("draw")]
    inputs[name] = torch.cat(parts, -1)
given = [value if isinstance(value, torch.Tensor) else zeros(value) for value in inputs.values()]
actions, *latents = policy(observations, *given)
actions, *latents = policy(observations, given[0], *latents, *given[-2:])
print(json.dumps([{name: value.tolist() for name, value in actions.items()}, *[x.tolist() for x in latents]]))
"""


@pytest.mark.slow
def test_torch_alone_runs_the_file_by_its_description(folder: Path) -> None:
    """In a process where nothing of ours can be imported: inputs and noise are made from the description."""
    agent, path = exported(folder, "crane", True)
    outcome = subprocess.run([sys.executable, "-c", CHILD, path], capture_output=True, text=True, cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    actions, *latents = json.loads(outcome.stdout)
    drawn = noise_of(agent, 3, torch.Generator().manual_seed(0))
    steps = {key: space.random((3,), torch.Generator()) * 0 for key, space in agent.spaces.items()}
    steps["hook", "load"][:, 0] = 1  # class 0
    encoded = agent.encoder(*[steps[key] for key in agent.encoder.in_keys])
    carried = [torch.zeros(3, *agent.latent_spec[key].shape) for key in LATENTS]
    never = torch.zeros(3, 1, dtype=torch.bool)
    for _ in range(2):
        with torch.no_grad():
            carried = agent.policy.step(encoded, carried[2], never, carried[0], carried[1], *drawn)
    for found, expected in zip(latents, carried, strict=True):
        assert_close(torch.tensor(found), expected)
    for key, expected in agent.action_space.restore(carried[2]).items():
        if key in {"gear", "horns"}:
            assert actions[key] == (expected.argmax(-1) if key == "gear" else expected).tolist()


# The description


def test_the_description_tells_classes_and_bounds() -> None:
    description = describe(agent_for("crane"), sample=True, bounds=stream("crane").bounds)
    actions, seen = description["outputs"]["actions"], description["inputs"]["observations"]
    assert (actions["arm/joints"]["low"], actions["arm/joints"]["high"]) == ([-2.0, 0.0], [3.0, 10.0])
    assert (actions["levers"]["classes"], actions["levers"]["low"]) == ([2, 3], 0)
    assert seen["hook/load"] == {"shape": ["N"], "dtype": "int64", "low": 0, "classes": [4]}
    assert seen["camera/front"] == {"shape": ["N", 48, 48, 3], "dtype": "uint8", "low": 0, "high": 255}
    assert seen["hook/position"] == {"shape": ["N", 2], "dtype": "float64", "low": -1.0, "high": 1.0}
    draw = description["inputs"]["action_noise"]["draw"]
    assert draw == [["normal", 2], ["uniform", 1], ["uniform", 2], ["uniform", 1], ["uniform", 1]]
    unscaled = describe(agent_for("Pendulum-v1"))["outputs"]["actions"]["action"]
    assert (unscaled["low"], unscaled["high"]) == (-1.0, 1.0)


# The comparison


def changed(agent: Agent, name: str, number: float) -> Agent:
    """A copy with other numbers in a part of one parameter."""
    other = copy.deepcopy(agent)
    nn.init.constant_(other.get_parameter(name)[:2], number)
    return other


def test_a_file_is_its_original_and_no_other(folder: Path) -> None:
    """Numbers to rounding and choices exactly, under the same noise."""
    agent, path = exported(folder, "Pendulum-v1", True)
    bounds = stream("Pendulum-v1").bounds
    assert compare(agent, path, bounds) < 1e-5
    assert compare(agent, path, {"action": (-2, 3)}) > 1e-2
    assert compare(changed(agent, "rssm.core.gates.bias", 1.0), path, bounds) > 1e-2
    assert math.isnan(compare(changed(agent, "actor.heads.0.mean.bias", torch.nan), path, bounds))
