"""The categorical latent: what is stored comes back, for any number of classes."""

from __future__ import annotations

import pytest
import torch

from dreamer_torchrl.modules.latents import CategoricalLatent


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_unpacking_undoes_packing(classes: int, dtype: torch.dtype) -> None:
    """Also of the last class, which one byte does not hold beyond 256 classes."""
    latent = CategoricalLatent(variables=2, classes=classes)
    state = torch.zeros(3, 2, classes)
    state[:, 0, 0] = state[:, 1, -1] = 1
    packed = latent.pack(state)
    assert (packed.dtype, packed[0].tolist()) == (dtype, [0, classes - 1])
    assert torch.equal(latent.unpack(packed), state)
    assert latent.unpack(state) is state


def test_more_classes_than_indices_are_refused() -> None:
    """Before anything is stored wrongly."""
    with pytest.raises(ValueError, match="classes=40000 are more than"):
        CategoricalLatent(variables=1, classes=40000).pack(torch.zeros(1, 40000))
