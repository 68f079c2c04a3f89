"""Attaching kernels to a network and detaching them; where they step aside; what is checked before they read memory."""

from __future__ import annotations

import copy
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, Unbounded

from dreamer_torchrl.agents.agent import Agent, build_agent
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.kernels import attach, compiling, detach, structures
from dreamer_torchrl.kernels.calls import call
from dreamer_torchrl.kernels.image_operators import FastImageStage
from dreamer_torchrl.kernels.layer import NativeHiddenLayer, NativeLinear, NativeMLP
from dreamer_torchrl.modules.images import ImageStage
from dreamer_torchrl.modules.layers import MLP, HiddenLayer, Linear, NormSilu
from tests.kernels.compilers import a_compiler, needs_compiler

pytestmark = needs_compiler
ODD = Size(belief=24, hidden=9, stochastic=5, classes=3, blocks=4, depth=2, units=11)


class OwnLinear(Linear):
    """A part of a user's own class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_attaching_and_detaching() -> None:
    """Parts get another class and keep their parameters; a user's own class is left alone."""
    network = nn.Sequential(MLP(3, 4, layers=1), OwnLinear(4, 5), Linear(5, 6), ImageStage(3, 4))
    before, names = [type(part) for part in network], list(network.state_dict())
    attach(network)
    assert [type(part) for part in network] == [NativeMLP, OwnLinear, NativeLinear, FastImageStage]
    assert type(copy.deepcopy(network)[0][0]) is NativeHiddenLayer
    assert list(network.state_dict()) == names
    attach(network, native=False)
    assert [type(part) for part in network] == [MLP, OwnLinear, Linear, FastImageStage]
    detach(network)
    assert [type(part) for part in network] == before


def agent_of(dtype: torch.dtype, weights: torch.dtype) -> Agent:
    torch.manual_seed(0)
    spec = Composite(observation=Unbounded((3,)))
    return build_agent(spec, Bounded(-1, 1, (2,)), ODD, dtype).to(weights)


@torch.no_grad()
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_an_agent_that_computes_in_float64_acts_the_same_with_kernels(weights: torch.dtype) -> None:
    """The kernel must not read float32 weights as if they were float64."""
    agent = agent_of(torch.float64, weights)
    for parameter in agent.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    encoded = agent.encoder(torch.randn(5, 3))
    assert encoded.dtype is torch.float64
    inputs = encoded, torch.zeros(5, 2), torch.zeros(5, 1, dtype=torch.bool), *agent.rssm.initial(5)
    noise = torch.rand(5, ODD.stochastic), torch.randn(5, 2)
    wanted = agent.policy.step(*inputs, *noise)
    attach(agent)
    for here, there in zip(agent.policy.step(*inputs, *noise), wanted, strict=True):
        assert_close(here, there.to(here.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("make", [Linear, HiddenLayer, lambda i, o: MLP(i, o, layers=2), lambda i, _: NormSilu(i)])
def test_kernels_step_aside_for_autocast(make: type[nn.Module], grad: bool) -> None:
    module = make(6, 7)
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        wanted = module(x)
        attach(module)
        assert torch.equal(module(x), wanted) and module(x).dtype is wanted.dtype


def test_a_structure_that_is_otherwise_in_c_is_noticed(tmp_path: Path) -> None:
    """When kernels are built, with the name of the structure."""
    right = structures.checked_header()
    header = right.replace("variables, classes, blocks;", "variables, classes, blocks, more;")
    assert header != right
    sources = {"kernels.c": b'typedef float real;\n#include "structures.h"\n', "structures.h": header.encode()}
    with pytest.raises(compiling.NotBuilt, match="Sizes is not as large in C as in Python"):
        compiling.build(sources, a_compiler(), tmp_path)
    compiling.build(sources | {"structures.h": right.encode()}, a_compiler(), tmp_path)


def test_tensors_that_a_kernel_would_read_wrongly_are_refused() -> None:
    """Of another precision, device or layout."""
    for wrong in (torch.ones(3).double(), torch.ones(3, device="meta"), torch.ones(6)[::2]):
        with pytest.raises(ValueError, match=r"'y' of \[3\] is torch\.float"):
            structures.made("NormArguments", torch.float32, x=torch.ones(3), y=wrong)


def test_a_kernel_without_memory_raises() -> None:
    """Instead of ending the process: 200 GB are asked for, where 1 GB more may be had."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    network = structures.STRUCTURES["NetworkWeights"](1)
    network.layer[0].weight = structures.STRUCTURES["Source"](None, 1, 1, 2**31 - 64, 0, 1, 1, 0)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, before[1]))
    try:
        with pytest.raises(MemoryError, match="layers_rows"):
            call("layers_rows", torch.float32, rows=16, network=network)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
