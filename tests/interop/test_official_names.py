"""Names and layouts of the official arrays: each parameter has one, and what comes back is what went there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import Recording
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from dreamer_torchrl.agents.agent import Size, build_agent
from dreamer_torchrl.interop.official_names import keys_of, links, official_name

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("proprio_cont", "vision_disc")
TINY = Size(belief=16, hidden=6, stochastic=4, classes=3, blocks=4, depth=2, units=10)
MIXED = Composite(
    zeta=Unbounded((3,)),
    alpha=Unbounded((2, 2)),
    item=Categorical(5, shape=()),
    ego=Bounded(0, 255, (48, 64, 3), dtype=torch.uint8),
    top=Bounded(0, 255, (48, 64, 1), dtype=torch.uint8),
)
ACTIONS = {
    "continuous": Bounded(-1, 1, (2,)),
    "one-hot": OneHot(3),
    "categorical": Categorical(3, shape=()),
    "multi-discrete": MultiCategorical([4, 4]),
    "composite": Composite(steer=Bounded(-1, 1, (2,)), gear=Categorical(3, shape=()), buttons=MultiCategorical([2, 2])),
}


# Which arrays there are


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_the_recorded_ones(case: str) -> None:
    config = json.loads((GOLDEN / f"{case}_config.json").read_text())
    other = ("slowval", "slowval_count", "retnorm")
    recorded = {name: shape for name, shape in config["param_shapes"].items() if name.split("/")[0] not in other}
    ours = {link.name: list(link.to_official(link.parameter).shape) for link in links(Recording(GOLDEN, case).agent())}
    assert ours == recorded
    assert sum(np.prod(shape, dtype=int) for shape in ours.values()) == config["n_params_optimized"]


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_every_parameter_has_one_name(action: TensorSpec) -> None:
    agent = build_agent(MIXED, action, TINY)
    found = links(agent)
    assert len({link.name for link in found}) == len(found)
    assert {id(link.parameter) for link in found} == {id(parameter) for parameter in agent.parameters()}
    assert len(found) == len(list(agent.parameters()))


# How they are laid out


def test_each_layout_is_undone() -> None:
    for link in links(build_agent(MIXED, ACTIONS["composite"], TINY)):
        value = torch.randn_like(link.parameter)
        array = link.to_official(value)
        assert array.dtype == np.float32 and array.flags.c_contiguous, link.name
        back = link.from_official(array)
        assert back.is_contiguous() and torch.equal(back, value), link.name


def test_the_official_decoder_writes_images_in_the_order_of_the_environment() -> None:
    ego, top = (Bounded(0, 255, (48, 48, channels), dtype=torch.uint8) for channels in (3, 1))
    agent = build_agent(Composite(top=top, ego=ego), OneHot(2), TINY)  # ours are sorted: ego, top
    arrays = {link.name: torch.from_numpy(link.to_official(link.parameter)) for link in links(agent)}
    kernel, bias, out = arrays["dec/imgout/kernel"], arrays["dec/imgout/bias"], agent.decoder.image.out
    ours = out.weight.permute(2, 3, 1, 0)  # [5, 5, in, out]
    assert torch.equal(kernel, ours[..., [3, 0, 1, 2]])
    assert torch.equal(bias, out.bias[[3, 0, 1, 2]])


# Where observations stand


@pytest.mark.parametrize("names", [["image", "state"], ["image", "vector"], ["robot/arm", "zeta"], ["belief"]])
def test_official_names_come_back(names: list[str]) -> None:
    keys = keys_of(names)
    assert [official_name(key) for key in keys.values()] == list(keys) == names
    agent = build_agent(Composite({key: Unbounded((2,)) for key in keys.values()}), OneHot(2), TINY)
    found = {link.name for link in links(agent)}
    assert {f"dec/vec/{name}/pred/kernel" for name in names} <= found
