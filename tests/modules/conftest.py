"""What the tests of several modules share: the recorded tables, and one check of all modules as TensorDictModules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import NestedKey, TensorDict, unravel_key
from torch import Tensor
from torch.testing import assert_close

from dreamer_torchrl.modules.tensordict_module import AsTensorDictModule
from tests.objectives import examples


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Tables of the official functions."""
    return examples.golden("tables_dists.npz")


@pytest.fixture(scope="session")
def check_faces() -> Callable[..., TensorDict]:
    """Run a module plainly, under its usual keys and under other ones, and expect the same three times."""

    def run(
        module: AsTensorDictModule, inputs: tuple[Tensor, ...], in_keys: list[NestedKey], out_keys: list[NestedKey]
    ) -> TensorDict:
        torch.manual_seed(1)  # a module without noise among its keys draws its own
        result = module.tensordict_module(in_keys, out_keys)(TensorDict(dict(zip(in_keys, inputs, strict=True))))
        assert {unravel_key(key) for key in result.keys(True, True)} == {*in_keys, *out_keys}
        return result

    def check(module: AsTensorDictModule, *inputs: Tensor) -> TensorDict:
        torch.manual_seed(1)
        plain = module(*inputs)
        plain = plain if isinstance(plain, tuple) else (plain,)
        in_keys, out_keys = list(module.in_keys)[: len(inputs)], list(module.out_keys)
        default = module.tensordict_module()
        assert (default.in_keys[: len(inputs)], default.out_keys) == (in_keys, out_keys)
        usual = run(module, inputs, in_keys, out_keys)
        # An output may take the place of an input; under other keys, both stay.
        other_in = [("given", f"in{i}") for i in range(len(in_keys))]
        other_out = [("made", f"out{i}") for i in range(len(out_keys))]
        other = run(module, inputs, other_in, other_out)
        for key, other_key, value in zip(out_keys, other_out, plain, strict=True):
            assert_close(usual[key], value, rtol=0, atol=0)
            assert_close(other[other_key], value, rtol=0, atol=0)
        for key, value in zip(other_in, inputs, strict=True):
            assert other[key] is value or other[key].equal(value)
        return usual

    return check
