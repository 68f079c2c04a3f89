"""Sequences and rollouts are nothing but steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite

from dreamer_torchrl.modules import RSSM, ActionSpace, Actor, ImagineRollout, ObserveSequence, imagine, observe
from tests.modules.rssm_examples import F_SIZE, A, D, K, S, model, one_hots, step_inputs


def sequence_inputs(resets: bool, batch: int = 3, length: int = 6) -> dict[str, Tensor]:
    encoded, action, _, _, noise = step_inputs(batch, length)
    is_init = torch.zeros(batch, length, 1, dtype=torch.bool)
    if resets:
        is_init[0, 0] = is_init[1, 2] = is_init[1, 4] = is_init[2, 5] = True
    belief = torch.randn(batch, D, dtype=torch.float64)
    inputs = {"encoded": encoded, "action": action, "belief": belief, "state": one_hots(batch)}
    return {**{key: value.requires_grad_() for key, value in inputs.items()}, "is_init": is_init, "noise": noise}


def in_one_go(rssm: RSSM, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return observe(rssm, *[inputs[key] for key in ("encoded", "action", "is_init", "belief", "state", "noise")])


def step_by_step(rssm: RSSM, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    belief, state = inputs["belief"], inputs["state"]
    steps = []
    for t in range(inputs["encoded"].shape[1]):
        now = [inputs[key][:, t] for key in ("encoded", "action", "is_init")]
        belief, state, logits = rssm(*now, belief, state, inputs["noise"][:, t])
        steps.append((belief, state, logits))
    return tuple(torch.stack(parts, 1) for parts in zip(*steps, strict=True))


@pytest.mark.parametrize("resets", [False, True], ids=["one_episode", "with_resets"])
def test_a_sequence_equals_its_steps_with_all_gradients(resets: bool) -> None:
    rssm, inputs = model(), sequence_inputs(resets)
    outputs, expected = in_one_go(rssm, inputs), step_by_step(rssm, inputs)
    weights = [torch.randn_like(output) for output in outputs]
    leaves = dict(rssm.named_parameters())
    leaves = {key: value for key, value in leaves.items() if not key.startswith("prior")}  # no part of a posterior
    leaves |= {key: value for key, value in inputs.items() if value.requires_grad}
    gradients = []
    for results in (outputs, expected):
        total = sum((result * weight).sum() for result, weight in zip(results, weights, strict=True))
        gradients.append(dict(zip(leaves, torch.autograd.grad(total, leaves.values()), strict=True)))
    for output, wanted in zip(outputs, expected, strict=True):
        assert_close(output, wanted)
    for key in leaves:
        assert gradients[1][key].any(), key
        assert_close(gradients[0][key], gradients[1][key], msg=lambda text, key=key: f"{key}: {text}")


def test_nothing_passes_a_reset_in_the_middle() -> None:
    rssm, inputs = model(), sequence_inputs(resets=False)
    inputs["is_init"][:, 3] = True
    outputs = in_one_go(rssm, inputs)
    later = sum(output[:, 3:].square().sum() for output in outputs)
    gradients = torch.autograd.grad(later, [inputs[key] for key in ("belief", "state", "encoded", "action")])
    assert not gradients[0].any() and not gradients[1].any()
    assert not gradients[2][:, :3].any() and gradients[2][:, 3:].any()
    assert not gradients[3][:, :4].any() and gradients[3][:, 4:].any()  # the action that led to the reset, too
    rest = {key: value[:, 3:] for key, value in inputs.items() if key not in ("belief", "state")}
    belief, state = (x.double() for x in rssm.initial(3))
    fresh = in_one_go(rssm, {**rest, "belief": belief, "state": state})
    for output, wanted in zip(outputs, fresh, strict=True):
        assert_close(output[:, 3:], wanted)


def test_a_sequence_in_bfloat16_gives_float32_gradients() -> None:
    rssm, inputs = model(torch.float32), sequence_inputs(resets=True)
    inputs = {key: value.detach().float() if value.is_floating_point() else value for key, value in inputs.items()}
    inputs["encoded"] = inputs["encoded"].bfloat16()
    sum(output.float().square().sum() for output in in_one_go(rssm, inputs)).backward()
    for name, parameter in rssm.named_parameters():
        if not name.startswith("prior"):
            assert parameter.grad.dtype is torch.float32
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_sequence_module_adds_prior_and_features() -> None:
    rssm, inputs = model(), sequence_inputs(resets=True)
    beliefs, states, logits = in_one_go(rssm, inputs)
    start = [inputs[key].unsqueeze(1).expand(-1, 6, *inputs[key].shape[1:]) for key in ("belief", "state")]
    outputs = ObserveSequence(rssm)(inputs["encoded"], inputs["action"], inputs["is_init"], *start, inputs["noise"])
    for output, wanted in zip(outputs, (beliefs, states, logits, rssm.prior_from(beliefs)), strict=False):
        assert_close(output, wanted)
    assert_close(outputs[4], torch.cat([beliefs, states.reshape(3, 6, S * K)], -1))
    assert_close(rssm.latent.features(beliefs, states), outputs[4])


def test_only_the_first_of_the_previous_latents_is_used_and_indices_do_as_well() -> None:
    rssm, inputs = model(), sequence_inputs(resets=False)
    module, given = ObserveSequence(rssm), [inputs[key] for key in ("encoded", "action", "is_init")]
    beliefs, states = torch.randn(3, 6, D, dtype=torch.float64), one_hots(3, 6)
    expected = module(*given, beliefs, states, inputs["noise"])
    later = beliefs.clone()
    later[:, 1:] = torch.nan
    for other in (
        module(*given, later, states, inputs["noise"]),
        module(*given, beliefs, states.argmax(-1).to(torch.uint8), inputs["noise"]),
    ):
        for output, wanted in zip(other, expected, strict=True):
            assert_close(output, wanted)


def actor_of(rssm: RSSM) -> Actor:
    space = ActionSpace(Composite(steer=Bounded(-1, 1, (1,)), gear=Categorical(2)))
    actor = Actor(F_SIZE, space, units=8).to(rssm.prior_logits.bias.dtype)
    for parameter in actor.parameters():
        nn.init.normal_(parameter, std=0.6)
    return actor


def dream_inputs(rows: int = 7, length: int = 5) -> tuple[Tensor, ...]:
    _, _, belief, state, _ = step_inputs(rows)
    double = {"dtype": torch.float64}
    return belief, state, torch.rand(rows, length, S, **double), torch.rand(rows, length, 2, **double)


def test_a_dream_under_a_policy_equals_its_steps() -> None:
    rssm = model()
    actor = actor_of(rssm)
    belief, state, noise, action_noise = dream_inputs()
    features, actions = imagine(rssm, belief, state, actor.act, noise, action_noise)
    assert (features.shape, actions.shape) == ((7, 6, F_SIZE), (7, 5, A))
    assert not features.requires_grad and not actions.requires_grad
    assert_close(features[:, 0], rssm.latent.features(belief, state))
    for h in range(5):
        action = actor.act(rssm.latent.features(belief, state), action_noise[:, h])
        assert_close(actions[:, h], action)
        belief, state, _ = rssm.imagine(belief, state, action, noise[:, h])
        assert_close(features[:, h + 1], rssm.latent.features(belief, state))


def test_a_dream_of_given_actions_equals_its_steps() -> None:
    rssm = model()
    belief, state, noise, _ = dream_inputs()
    given = 2 * torch.randn(7, 5, A, dtype=torch.float64)
    features, actions = imagine(rssm, belief, state, given, noise)
    assert_close(actions, given)
    for h in range(5):
        belief, state, _ = rssm.imagine(belief, state, given[:, h], noise[:, h])
        assert_close(features[:, h + 1], rssm.latent.features(belief, state))


def test_a_rollout_starts_from_every_step_and_ends_without_an_action() -> None:
    rssm = model()
    dream = ImagineRollout(rssm, actor_of(rssm), length=5)
    belief, state, noise, action_noise = dream_inputs(rows=6)
    flat, flat_actions = dream(belief, state, noise, action_noise)
    assert (flat.shape, flat_actions.shape) == ((6, 6, F_SIZE), (6, 6, A))
    assert not flat_actions[:, -1].any()
    assert flat_actions[:, :-1].any(-1).all()
    batched = [x.unflatten(0, (2, 3)) for x in (belief, state, noise, action_noise)]
    features, actions = dream(*batched)
    assert_close(features.flatten(0, 1), flat)
    assert_close(actions.flatten(0, 1), flat_actions)
    alone, alone_actions = dream(*[x[0] for x in (belief, state, noise, action_noise)])
    assert_close(alone, flat[0])
    assert_close(alone_actions, flat_actions[0])
    torch.manual_seed(1)
    drawn = dream(belief, state)
    torch.manual_seed(1)
    assert_close(dream(belief, state), drawn, rtol=0, atol=0)


def test_faces(check_faces: Callable[..., TensorDict]) -> None:
    rssm = model()
    inputs = {key: value.detach() for key, value in sequence_inputs(resets=True).items()}
    start = [inputs[key].unsqueeze(1).repeat(1, 6, *[1] * (inputs[key].ndim - 1)) for key in ("belief", "state")]
    sequence = check_faces(
        ObserveSequence(rssm), inputs["encoded"], inputs["action"], inputs["is_init"], *start, inputs["noise"]
    )
    assert sequence["features"].shape == (3, 6, F_SIZE)
    check_faces(ImagineRollout(rssm, actor_of(rssm), length=5), *dream_inputs())
