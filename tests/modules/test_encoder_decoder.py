"""Any set of observation keys goes in and comes back, and a wrong reconstruction costs what it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import NestedKey
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, Unbounded

from dreamer_torchrl.modules import Decoder, Encoder
from dreamer_torchrl.modules.decoder import ReconstructionCost, observation_from
from dreamer_torchrl.modules.layers import convolve
from dreamer_torchrl.modules.spaces import Continuous, Discrete, Image, Space, key_name, spaces_from_spec

BELIEF, STATE = 16, 12


def pixels(*shape: int) -> Bounded:
    return Bounded(0, 255, shape, dtype=torch.uint8)


def everything() -> Composite:
    """Every kind of key at once."""
    return Composite(
        {
            "scalar": Unbounded(()),
            "vector": Unbounded((3,)),
            "matrix": Unbounded((2, 3)),
            "sensors": Composite(compass=Categorical(4), touch=OneHot(3)),
            "bag": MultiCategorical([2, 5]),
            "tools": MultiOneHot([2, 3]),
            "lamps": Binary(2),
            "health": Bounded(1, 3, (2,), dtype=torch.int64),
            "front": pixels(48, 48, 3),
            "wrist": pixels(1, 48, 48),
        }
    )


SPACES = spaces_from_spec(everything(), "observation")
every_key = pytest.mark.parametrize("key", SPACES, ids=map(key_name, SPACES))


def draw(spaces: dict[NestedKey, Space], *batch: int) -> dict[NestedKey, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: space.random(batch, generator) for key, space in spaces.items()}


def decoder(spaces: dict[NestedKey, Space], **options: int) -> Decoder:
    return Decoder(spaces, BELIEF, STATE, **{"units": 8, "depth": 2, **options})


def test_vectors_come_first_in_the_order_of_their_keys_then_the_image() -> None:
    encoder = Encoder(SPACES, units=8, depth=2)
    values = draw(SPACES, 2, 5)
    encoded = encoder(*values.values())
    assert encoded.shape == (2, 5, encoder.out_features)
    one_hot = torch.nn.functional.one_hot
    flat = [
        one_hot(values["bag"][..., 0], 2),
        one_hot(values["bag"][..., 1], 5),
        one_hot(values["health"] - 1, 3).flatten(2),
        one_hot(values["lamps"].long(), 2).flatten(2),
        values["matrix"].flatten(2).sign() * values["matrix"].flatten(2).abs().log1p(),
        values["scalar"].unsqueeze(-1).sign() * values["scalar"].unsqueeze(-1).abs().log1p(),
        one_hot(values["sensors", "compass"], 4),
        values["sensors", "touch"],
        values["tools"],
        values["vector"].sign() * values["vector"].abs().log1p(),
    ]
    assert_close(encoded[..., :8], encoder.vector(torch.cat([part.float() for part in flat], -1)))
    image = torch.cat([values["front"], values["wrist"].movedim(-3, -1)], -1).float() / 255 - 0.5
    features = encoder.image(image.flatten(0, 1))  # [10, 3, 3, 8]
    assert features.shape == (10, 3, 3, 8)
    assert_close(encoded[..., 8:], features.reshape(2, 5, -1), rtol=1e-5, atol=1e-5)


def test_channels_first_and_last_are_the_same_picture() -> None:
    last, first = {"image": Image(64, 48, 3)}, {"image": Image(64, 48, 3, channels_first=True)}
    torch.manual_seed(0)
    encoder_last, decoder_last = Encoder(last, depth=2), decoder(last)
    encoder_first, decoder_first = Encoder(first, depth=2), decoder(first)
    encoder_first.load_state_dict(encoder_last.state_dict())
    decoder_first.load_state_dict(decoder_last.state_dict())
    image, features = draw(last, 2)["image"], torch.randn(2, BELIEF + STATE)
    moved = image.movedim(-1, -3)
    assert_close(encoder_first(moved), encoder_last(image), rtol=0, atol=0)
    assert_close(decoder_first(features), decoder_last(features).movedim(-1, -3), rtol=0, atol=0)
    losses = [
        ReconstructionCost()(space["image"], decode(features), observed)
        for space, decode, observed in ((last, decoder_last, image), (first, decoder_first, moved))
    ]
    assert_close(losses[0], losses[1])


@pytest.mark.parametrize("sides", [(48, 48), (96, 48)])
def test_images_of_other_sides(sides: tuple[int, int]) -> None:
    spaces = {"image": Image(*sides, 3)}
    encoder, image = Encoder(spaces, depth=2), draw(spaces, 2)["image"]
    encoded = encoder(image)
    assert encoded.shape == (2, (sides[0] // 16) * (sides[1] // 16) * 8) == (2, encoder.out_features)
    prediction = decoder(spaces)(torch.randn(2, BELIEF + STATE))
    assert prediction.shape == image.shape
    assert ((prediction > 0) & (prediction < 1)).all()


@pytest.mark.parametrize("build", [lambda s: Encoder(s, depth=2), decoder], ids=["encoder", "decoder"])
@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ({("eye", "left"): Image(60, 64, 3)}, r"'eye/left'.*height 60.*multiple of 16 between 48 and 256"),
        ({"image": Image(64, 60, 3)}, r"'image'.*width 60.*multiple of 16 between 48 and 256"),
        ({"image": Image(32, 32, 3)}, r"'image'.*height 32.*between 3 and 16.*multiple of 16 between 48 and 256"),
        ({"image": Image(272, 64, 3)}, r"'image'.*height 272.*multiple of 16 between 48 and 256"),
        ({"a": Image(64, 64, 3), "b": Image(64, 48, 3)}, r"'a' 64 x 64, 'b' 64 x 48.*one size"),
    ],
    ids=["height_60", "width_60", "side_32", "side_272", "different_sides"],
)
def test_sides_that_do_not_work_are_named_with_those_that_do(
    spaces: dict[NestedKey, Space], words: str, build: Callable[..., object]
) -> None:
    with pytest.raises(ValueError, match=words):
        build(spaces)


def test_the_smallest_picture_is_filled_block_by_block_of_channels() -> None:
    decode = Decoder({"image": Image(48, 64, 3)}, BELIEF, STATE, units=8, depth=4).double()
    image = decode.image
    features = torch.randn(2, BELIEF + STATE, dtype=torch.float64)
    maps = image.from_belief(features[:, :BELIEF])
    expected = torch.empty(2, 3, 4, 16, dtype=torch.float64)
    for block in range(8):  # of two channels each, in an order (block, height, width, channel of the block)
        part = maps[:, block * 24 : (block + 1) * 24].reshape(2, 3, 4, 2)
        expected[..., 2 * block : 2 * block + 2] = part
    expected = image.norm(expected + image.from_state(features[:, BELIEF:]).reshape(2, 3, 4, 16))
    for stage, width in zip(image.stages, (16, 12, 8), strict=True):
        expected = stage.norm(stage.conv(expected.repeat_interleave(2, 1).repeat_interleave(2, 2)))
        assert expected.shape[-1] == width
    expected = convolve(expected.repeat_interleave(2, 1).repeat_interleave(2, 2), image.out.weight, image.out.bias)
    expected = expected.sigmoid()
    assert_close(decode(features), expected)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_depth_whose_channels_do_not_split_into_blocks_is_refused(depth: int) -> None:
    # 4 x 3 channels in 8 blocks: the number of pixels happens to fit, and the rows of a batch would mix in silence.
    with pytest.raises(ValueError, match=f"depth.*{depth}"):
        decoder({"image": Image(64, 64, 3)}, depth=depth)


def test_symlog_squared_error_is_official(golden: dict[str, Tensor]) -> None:
    loss = ReconstructionCost()(Continuous((5,)), golden["symlog_mse/pred"], golden["symlog_mse/target"])
    assert_close(loss, golden["symlog_mse/loss"], rtol=1e-5, atol=1e-5)


def test_classes_cost_their_cross_entropy() -> None:
    space = Discrete((2, 5), (2,))
    prediction, observation = torch.randn(4, 7), torch.tensor([[0, 4], [1, 0], [1, 2], [0, 3]])
    first = torch.nn.functional.cross_entropy(prediction[:, :2], observation[:, 0], reduction="none")
    second = torch.nn.functional.cross_entropy(prediction[:, 2:], observation[:, 1], reduction="none")
    assert_close(ReconstructionCost()(space, prediction, observation), first + second)


def perfect(space: Space, observation: Tensor) -> Tensor:
    """The prediction that costs nothing."""
    if isinstance(space, Image):
        return observation / 255
    flat = space.flatten(observation)
    return flat.sign() * flat.abs().log1p() if isinstance(space, Continuous) else 100 * flat


@every_key
def test_a_perfect_prediction_costs_nothing_and_is_the_observation(key: NestedKey) -> None:
    space, observation = SPACES[key], draw(SPACES, 2, 5)[key]
    prediction = perfect(space, observation)
    assert_close(ReconstructionCost()(space, prediction, observation), torch.zeros(2, 5))
    back = observation_from(space, prediction)
    if isinstance(space, Image):  # pixels stay in 0 to 1
        back = (back * 255).round().to(torch.uint8)
    assert_close(back, observation)  # dtype included


def test_bfloat16_goes_through_and_losses_stay_float32() -> None:
    encoder = Encoder(SPACES, units=8, depth=2, dtype=torch.bfloat16)
    decode, values = decoder(SPACES), draw(SPACES, 2, 5)
    encoded = encoder(*values.values())
    assert encoded.dtype is torch.bfloat16
    exact = Encoder(SPACES, units=8, depth=2)
    exact.load_state_dict(encoder.state_dict())
    assert_close(encoded.float(), exact(*values.values()), rtol=0.1, atol=0.1)
    features = torch.randn(2, 5, BELIEF + STATE)
    low, high = decode(features.bfloat16()), decode(features)
    for (key, space), prediction, wanted in zip(SPACES.items(), low, high, strict=True):
        assert prediction.dtype is torch.float32
        assert_close(prediction, wanted, rtol=0.1, atol=0.1)
        assert ReconstructionCost()(space, prediction, values[key]).dtype is torch.float32


def test_faces(check_faces: Callable[..., None]) -> None:
    values = draw(SPACES, 2, 5)
    encoder = Encoder(SPACES, units=8, depth=2)
    assert encoder.in_keys == list(SPACES)
    check_faces(encoder, *values.values())
    check_faces(decoder(SPACES), torch.randn(2, 5, BELIEF + STATE))


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_patches_replace_the_first_stages(patch: int) -> None:
    spaces = {"pixels": Image(48, 64, 3)}
    encoder, decoder = Encoder(spaces, depth=2, patch=patch), Decoder(spaces, 16, 4, depth=2, patch=patch)
    encoded = encoder(torch.zeros(2, 5, 48, 64, 3, dtype=torch.uint8))
    assert encoded.shape == (2, 5, encoder.out_features) and encoder.out_features == 3 * 4 * 8
    assert decoder(torch.zeros(2, 5, 20)).shape == (2, 5, 48, 64, 3)
    assert len(encoder.image) == len(decoder.image.stages) + 1 == 5 - max(1, patch.bit_length() - 1)


def test_a_patch_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match="patch=3 is impossible: give 1, 2, 4 or 8"):
        Encoder({"pixels": Image(48, 64, 3)}, patch=3)
