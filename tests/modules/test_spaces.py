"""What a key holds is read off its spec, and values come back as that spec wants them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)

from dreamer_torchrl.modules.spaces import Continuous, Discrete, Image, key_name, space_from_spec, spaces_from_spec

CONTINUOUS = {
    "scalar": (Unbounded(()), 1),
    "vector": (Unbounded((3,)), 3),
    "matrix": (Bounded(-2, 2, (2, 3)), 6),
    "float64": (Unbounded((3,), dtype=torch.float64), 3),
}
DISCRETE = {
    "one_hot": (OneHot(4), (4,)),
    "one_hot_rows": (OneHot(4, shape=(3, 4)), (4, 4, 4)),
    "categorical": (Categorical(4), (4,)),
    "categorical_with_axis": (Categorical(4, shape=(1,)), (4,)),
    "categorical_matrix": (Categorical(4, shape=(2, 2), dtype=torch.int32), (4, 4, 4, 4)),
    "bool": (Categorical(2, dtype=torch.bool), (2,)),
    "multi_categorical_alike": (MultiCategorical([3, 3]), (3, 3)),
    "multi_categorical": (MultiCategorical([2, 5, 3]), (2, 5, 3)),
    "multi_one_hot_alike": (MultiOneHot([3, 3]), (3, 3)),
    "multi_one_hot": (MultiOneHot([2, 5, 3]), (2, 5, 3)),
    "binary": (Binary(3), (2, 2, 2)),
    "bounded_integers": (Bounded(-1, 2, (2,), dtype=torch.int32), (4, 4)),
    "bytes": (Bounded(0, 7, (3,), dtype=torch.uint8), (8, 8, 8)),
}
VECTORS = {**CONTINUOUS, **DISCRETE}
every_vector = pytest.mark.parametrize("spec", [spec for spec, _ in VECTORS.values()], ids=VECTORS)


def test_specs_of_floats_are_continuous_and_those_of_classes_and_bounded_integers_discrete() -> None:
    for spec, size in CONTINUOUS.values():
        space = space_from_spec(spec)
        assert (type(space), space.shape, space.size) == (Continuous, tuple(spec.shape), size)
    for spec, classes in DISCRETE.values():
        space = space_from_spec(spec)
        assert (type(space), space.shape, space.classes) == (Discrete, tuple(spec.shape), classes)
        assert space.size == sum(classes)


@every_vector
def test_a_value_survives_flatten_and_restore(spec: TensorSpec) -> None:
    space = space_from_spec(spec)
    values = torch.stack([spec.rand() for _ in range(10)]).unflatten(0, (2, 5))
    flat = space.flatten(values)
    assert flat.shape == (2, 5, space.size)
    assert flat.is_floating_point()
    assert_close(space.restore(flat), values, rtol=0, atol=0)  # dtype and shape included
    assert spec.is_in(space.restore(space.flatten(spec.rand())))


@pytest.mark.parametrize(
    ("spec", "value", "flat"),
    [
        (Categorical(3), 1, [0, 1, 0]),
        (MultiCategorical([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
        (MultiCategorical([2, 2]), [1, 0], [0, 1, 1, 0]),
        (MultiOneHot([2, 3]), [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]),
        (Binary(2), [1, 0], [0, 1, 1, 0]),
        (Bounded(-1, 1, (2,), dtype=torch.int64), [-1, 1], [1, 0, 0, 0, 0, 1]),
        (Unbounded((2, 2)), [[1, 2], [3, 4]], [1, 2, 3, 4]),
    ],
)
def test_the_flat_form_by_example(spec: TensorSpec, value: list[int], flat: list[int]) -> None:
    space = space_from_spec(spec)
    assert space.flatten(torch.tensor(value).to(spec.dtype)).tolist() == flat
    assert space.restore(torch.tensor(flat).float()).tolist() == value


@pytest.mark.parametrize("shape", [(64, 48, 3), (64, 48, 1), (48, 64, 4)])
def test_images_come_channels_last_or_first(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    last = space_from_spec(Bounded(0, 255, shape, dtype=torch.uint8))
    first = space_from_spec(Bounded(0, 255, (channels, height, width), dtype=torch.uint8))
    assert last == Image(height, width, channels)
    assert first == Image(height, width, channels, channels_first=True)
    pixels = torch.randint(256, (2, 5, *shape), dtype=torch.uint8)
    assert last.to_channels_last(pixels) is pixels
    assert first.to_channels_last(pixels.movedim(-1, -3)).equal(pixels)
    assert first.from_channels_last(pixels).shape == (2, 5, *first.shape)


IMAGES = {
    "image": Bounded(0, 255, (64, 48, 3), dtype=torch.uint8),
    "channels_first": Bounded(0, 255, (3, 64, 48), dtype=torch.uint8),
}


@pytest.mark.parametrize("name", [*VECTORS, *IMAGES])
def test_example_values_fit_the_spec(name: str) -> None:
    spec = IMAGES[name] if name in IMAGES else VECTORS[name][0]
    values = space_from_spec(spec).random((2, 5), torch.Generator().manual_seed(0))
    assert values.shape == (2, 5, *spec.shape)
    assert all(spec.is_in(value) for value in values.flatten(0, 1))
    assert values.equal(space_from_spec(spec).random((2, 5), torch.Generator().manual_seed(0)))


def test_bounds_are_the_different_pairs() -> None:
    assert space_from_spec(Unbounded((3,))).bounds == ()
    assert space_from_spec(Bounded(-1, 1, (3,))).bounds == ((-1.0, 1.0),)
    low = torch.tensor([0.0, -1.0, 0.0])
    assert space_from_spec(Bounded(low, torch.ones(3))).bounds == ((-1.0, 1.0), (0.0, 1.0))


def nested_spec() -> Composite:
    return Composite(
        {
            "vector": Unbounded((3,)),
            "reward": Unbounded((1,)),
            "arm": Composite(joints=Unbounded((2, 2)), grip=Categorical(3)),
            "image": Bounded(0, 255, (64, 64, 3), dtype=torch.uint8),
            "items": MultiCategorical([2, 5]),
            "tools": MultiOneHot([2, 5]),
            "count": Bounded(1, 3, (2,), dtype=torch.int64),
            "kind": OneHot(4),
        }
    )


def test_keys_of_a_nested_spec_are_sorted_by_their_names() -> None:
    keys = list(spaces_from_spec(nested_spec(), "observation", exclude=("reward",)))
    assert keys == [("arm", "grip"), ("arm", "joints"), "count", "image", "items", "kind", "tools", "vector"]
    assert [key_name(key) for key in keys[:3]] == ["arm/grip", "arm/joints", "count"]


def test_batch_axes_of_a_spec_are_left_out() -> None:
    plain, batched = nested_spec(), nested_spec().expand(4, 2)
    assert spaces_from_spec(batched, "observation") == spaces_from_spec(plain, "observation")


def test_a_value_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5, 4\].*\[3\]"):
        Continuous((3,)).flatten(torch.ones(5, 4))
