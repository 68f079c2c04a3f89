"""The recordings of the official Dreamer V1 and V2 codes hold, and each bent formula is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_names import Names
from family_verification import Replay, family_of, verify_family
from recording import Recording
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import Bounded, Composite, Unbounded

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.interop.verify import main
from dreamer_torchrl.learners.adam import ClippedAdam
from dreamer_torchrl.modules.cores import LayerNormGRU
from dreamer_torchrl.modules.decoder import Decoder
from dreamer_torchrl.modules.distributions import OneHotDist
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.heads import NormalHead
from dreamer_torchrl.modules.latents import CategoricalLatent
from dreamer_torchrl.modules.layers import dense_layers
from dreamer_torchrl.modules.squashed import TruncatedNormal
from dreamer_torchrl.modules.strided import StridedEncoder, TransposedDecoder
from dreamer_torchrl.objectives import returns, world_model
from tests.kernels.compilers import a_compiler
from tests.objectives.examples import TINY

GOLDEN = Path(__file__).parents[1] / "golden_family"
CASES = ("v1_vision_cont", "v1_vision_disc", "v2_vision_disc", "v2_proprio_cont", "v2_gauss_both")


def wrong(case: str, folder: Path = GOLDEN, **settings: Any) -> set[str]:
    """What the comparison finds wrong, under changed settings of the official code."""
    recording = family_of(Recording(folder, case))
    recording.settings.update(settings)
    return {row.quantity for row in verify_family(recording) if not row.ok}


# They hold


@pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("case", CASES)
def test_all_quantities_agree(case: str, native: bool) -> None:
    if native and a_compiler() is None:
        pytest.skip("needs a C compiler")
    recording = family_of(Recording(GOLDEN, case))
    rows = verify_family(recording, native=native)
    assert not [str(row) for row in rows if not row.ok]
    quantities = {row.quantity for row in rows}
    assert len(quantities) == len(rows)
    names = [name for name in recording.config["param_shapes"] if "_state" not in name]
    for name in names:
        parts = {"rssm/gru/bias": ("0", "1"), "actor/hout": ("/mean", "/std")}
        split = recording.first and (name == "rssm/gru/bias" or ("hout" in name and name.startswith("actor")))
        if split and not (recording.discrete and "hout" in name):
            head, _, leaf = name.rpartition("/") if "hout" in name else (name, "", "")
            ours = [f"{head}{part}{'/' + leaf if leaf else ''}" for part in parts[head]]
        else:
            ours = [name]
        for each in ours:
            assert {f"1 param {each}", f"2 param {each}"} <= quantities
            assert "target_critic" in each or {f"1 grad {each}", f"2 grad {each}"} <= quantities


def test_orders_of_observations_that_no_recording_has() -> None:
    """Images and vectors together: the official embedding starts with images, and keys stand as in the environment."""
    kind = dense_layers()
    spec = {"late": Unbounded((3,)), "photo": Bounded(0, 255, (64, 64, 3), dtype=torch.uint8), "early": Unbounded((2,))}
    spec["chart"] = Bounded(0, 255, (64, 64, 1), dtype=torch.uint8)
    agent = Agent(
        *(Composite(spec), Bounded(-1, 1, (2,)), TINY),
        layers=kind,
        core=LayerNormGRU,
        prior_layers=1,
        encoder=partial(Encoder, units=8, symlog=False, kind=kind, image=partial(StridedEncoder, depth=2)),
        decoder=partial(Decoder, units=8, kind=kind, image=partial(TransposedDecoder, depth=2)),
        **{name: partial(NormalHead, kind=kind) for name in ("reward", "value")},
    )
    for bias in (parameter for parameter in agent.parameters() if parameter.ndim == 1):
        torch.nn.init.normal_(bias)
    found = {link.name: link.to_official(link.parameter) for link in Names(agent, list(spec), first=False).links()}
    assert len(found) == len(list(agent.parameters()))
    seen = {key: torch.rand(1, *leaf.shape).mul(255 if len(leaf.shape) == 3 else 1) for key, leaf in spec.items()}
    encoder, belief = agent.encoder, torch.rand(1, agent.rssm.belief_size)
    kernels = {name: torch.from_numpy(array) for name, array in found.items()}
    vectors = torch.cat([seen["late"], seen["early"]], -1)  # [1, 5], in the environment's order
    layer = encoder.vector[0].linear
    own = layer(torch.cat([seen["early"], seen["late"]], -1)) - layer.bias
    assert_close(vectors @ kernels["enc/dense0/kernel"], own)
    images = torch.cat([seen["photo"], seen["chart"]], -1)[:, :4, :4]  # [1, 4, 4, 4]
    first = encoder.image.convolutions[0]
    own = first(torch.cat([seen["chart"], seen["photo"]], -1).permute(0, 3, 1, 2))[0, :, 0, 0] - first.bias
    assert_close(torch.einsum("nhwc,hwco->o", images, kernels["enc/conv0/kernel"]), own, rtol=1e-4, atol=1e-3)
    vector, image = torch.rand(1, 8), torch.rand(1, encoder.image.out_features)
    layer = agent.rssm.posterior.linear
    own = layer(torch.cat([belief, vector, image], -1)) - layer.bias
    assert_close(torch.cat([belief, image, vector], -1) @ kernels["rssm/obs_out/kernel"], own)
    last = agent.decoder.image.convolutions[-1].bias
    assert_close(kernels["dec/conv3/bias"], torch.cat([last[1:], last[:1]]))


def test_the_command_knows_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And a weight that is 1% off is found, and what does not depend on it stays right."""
    for file in GOLDEN.glob("v2_gauss_both_*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / "v2_gauss_both_params0.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"critic/dense1/kernel": 1.01 * arrays["critic/dense1/kernel"]})
    for folder, status in ((GOLDEN, 0), (tmp_path, 1)):
        assert main([str(folder), "--case", "v2_gauss_both"]) == status
        *rows, last = capsys.readouterr().out.splitlines()
        assert last.endswith("quantities agree with the recording.")
    found = {row.split("  ")[0] for row in rows if row.endswith("WRONG")}
    assert {"1 task/critic", "1 grad critic/dense1/kernel", "1 param critic/dense1/kernel"} <= found
    assert not any(name.startswith(("1 posterior", "2 ", "acting")) for name in found)


def test_what_our_parts_do_not_know_is_named(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "v2_gauss_both_config.json", tmp_path)
    path = tmp_path / "v2_gauss_both_config.json"
    config = json.loads(path.read_text())
    config["config"]["rssm"]["ensemble"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"rssm\.ensemble=5; this agent only knows 1"):
        Replay(family_of(Recording(tmp_path, "v2_gauss_both")))


# What is wrong is found and named


def kl_turned(self: CategoricalLatent, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    dynamics, representation = PLAIN_KL(self, posterior, prior)
    return representation, dynamics


def kl_with_both_gradients(self: CategoricalLatent, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    p, log_p, log_q = posterior.softmax(-1), posterior.log_softmax(-1), prior.log_softmax(-1)
    divergence = (p * (log_p - log_q)).sum((-1, -2))
    return divergence, divergence


def free_nats_otherwise(*terms: Any) -> tuple[Tensor, Tensor]:
    """Of the mean where they are of each step; the recordings with those of the mean have no step below them."""
    *others, average, gather = terms
    return PLAIN_FREE_NATS(*others, not average, gather)


def returns_shifted(reward: Tensor, value: Tensor, discount: Tensor, share: float) -> Tensor:
    return returns.lambda_return(torch.cat([reward[..., 1:], reward[..., -1:]], -1), value, discount, share)


def decay_times_rate(self: ClippedAdam, params: list[Tensor], group: dict[str, Any], where: Tensor | None) -> None:
    PLAIN_UPDATE(self, params, group | {"decay": group["decay"] * group["lr"]}, where)


def eps_inside(self: ClippedAdam, params: list[Tensor], group: dict[str, Any], where: Tensor | None) -> None:
    count = float(self.state[params[0]]["step"]) + 1
    PLAIN_UPDATE(self, params, group | {"eps": group["eps"] * (1 - group["betas"][1] ** count) ** 0.5}, where)


def draw_without_deviation(self: TruncatedNormal, raw: Tensor) -> Tensor:
    return self._rounded(raw + self.loc - self.loc.detach())


def log_prob_of_gradient(self: OneHotDist, value: Tensor) -> Tensor:
    return (self.log_probs * value).sum((-1, -2))


def imagination_that_policies_shape(
    rssm: Any,
    belief: Tensor,
    state: Tensor,
    action: Callable[..., Tensor],
    noise: Tensor,
    action_noise: Tensor,
    _: None,
) -> tuple[Tensor, Tensor]:
    features, actions = [rssm.latent.features(belief, state)], []
    for h in range(noise.shape[1]):
        actions.append(action(features[-1], action_noise[:, h]))
        belief, state, _ = rssm.imagine(belief, state, actions[-1], noise[:, h])
        features.append(rssm.latent.features(belief, state))
    return torch.stack(features, 1), torch.stack(actions, 1)


PLAIN_KL, PLAIN_FREE_NATS, PLAIN_UPDATE = CategoricalLatent.kl, world_model.kl, ClippedAdam.update_group
OBJECTIVES, MODULES = "dreamer_torchrl.objectives", "dreamer_torchrl.modules"
BENT: dict[str, tuple[str, str, Callable[..., Any], set[str]]] = {
    "direction of KL balancing": (
        "v2_proprio_cont",
        f"{MODULES}.latents.CategoricalLatent.kl",
        kl_turned,
        {"1 grad rssm/img_dist_0/kernel", "1 grad rssm/obs_dist/kernel"},
    ),
    "stop-gradients of the KL": (
        "v2_proprio_cont",
        f"{MODULES}.latents.CategoricalLatent.kl",
        kl_with_both_gradients,
        {"1 grad rssm/img_dist_0/kernel", "1 grad rssm/obs_dist/kernel"},
    ),
    "free nats of each step or of the mean": (
        "v2_gauss_both",
        f"{OBJECTIVES}.world_model.kl",
        free_nats_otherwise,
        {"1 loss KL", "1 loss model", "1 grad rssm/img_dist_0/kernel"},
    ),
    "copies of the critic": (
        "v2_proprio_cont",
        f"{OBJECTIVES}.value.SlowUpdate.step",
        lambda self, where=None: None,
        {"2 param target_critic/out/out/kernel", "2 param expl/target_critic/out/out/kernel"},
    ),
    "lambda-return one step off": (
        "v1_vision_cont",
        f"{OBJECTIVES}.dynamics.lambda_return",
        returns_shifted,
        {"1 imag/target", "1 imag/loss actor", "1 grad value/hout/kernel"},
    ),
    "stop-gradient of what the actor reads": (
        "v2_gauss_both",
        f"{MODULES}.rollout.imagine_each",
        imagination_that_policies_shape,
        {"1 grad actor/dense0/kernel", "dynamics grad actor/dense0/kernel"},
    ),
    "decay times learning rate": (
        "v2_proprio_cont",
        "dreamer_torchrl.learners.adam.ClippedAdam.update_group",
        decay_times_rate,
        {"1 param enc/dense0/kernel", "1 param critic/out/out/kernel"},
    ),
    "eps of Adam inside its correction": (
        "v2_proprio_cont",
        "dreamer_torchrl.learners.adam.ClippedAdam.update_group",
        eps_inside,
        {"1 param actor/dense0/kernel"},
    ),
    "gradient of the truncated normal": (
        "v2_proprio_cont",
        f"{MODULES}.squashed.TruncatedNormal.draw_of",
        draw_without_deviation,
        {"1 grad actor/out/std/kernel", "1 grad expl/actor/out/std/kernel"},
    ),
    "gradient of a log-probability for its sample": (
        "v2_vision_disc",
        f"{MODULES}.distributions.OneHotDist.log_prob",
        log_prob_of_gradient,
        {"both grad actor/out/out/kernel"},
    ),
}


@pytest.mark.parametrize("formula", BENT)
def test_a_bent_formula(monkeypatch: pytest.MonkeyPatch, formula: str) -> None:
    case, place, bent, named = BENT[formula]
    monkeypatch.setattr(place, bent)
    assert named <= wrong(case)


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        ("v2_proprio_cont", {"slow_target_update": 3}, {"1 param target_critic/out/out/kernel"}),
        ("v2_proprio_cont", {"slow_target_fraction": 0.5}, {"2 param target_critic/out/out/kernel"}),
        ("v2_proprio_cont", {"slow_target": False}, {"1 task/target", "1 grad actor/dense0/kernel"}),
        ("v2_gauss_both", {"actor_ent": 0.01, "actor_grad_mix": 0.5}, {"1 task/loss actor", "both loss"}),
        ("v2_gauss_both", {"grad_heads": ["decoder", "reward", "discount"]}, {"1 grad rssm/gru/kernel"}),
        ("v2_gauss_both", {"discount_lambda": 0.9}, {"1 task/target", "1 grad critic/dense0/kernel"}),
        ("v2_proprio_cont", {"expl_extr_scale": 0.0}, {"1 expl/predicted_reward", "1 grad expl/actor/dense0/kernel"}),
        ("v1_vision_disc", {"pcont_scale": 1.0, "grad_clip": 10.0}, {"1 loss model", "1 param pcont/hout/kernel"}),
    ],
)
def test_a_bent_setting(case: str, change: dict[str, Any], named: set[str]) -> None:
    assert named <= wrong(case, **change)


def test_the_order_of_an_update() -> None:
    """V2 imagines with the new model, V1 with the old one."""
    for case, prefix in (("v2_gauss_both", "task/"), ("v1_vision_cont", "imag/")):
        recording = family_of(Recording(GOLDEN, case))
        replay = Replay(recording, model_first=recording.first)
        found = {row.quantity for row in replay.update(1) if not row.ok}
        assert {f"{prefix}belief", f"{prefix}target"} <= found
