"""Replay a recording of the official agent and compare number for number."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np
import torch
from comparison import Row, compare
from family_verification import family_of, verify_family
from recording import Recording, part_of, uniform_for
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.interop.official import MOMENTUM, SECOND_MOMENT, load_into, save_official_params
from dreamer_torchrl.interop.official_names import links
from dreamer_torchrl.learners.learner import Learner, total
from dreamer_torchrl.modules.actor import ActionDistribution
from dreamer_torchrl.modules.decoder import reconstruction_key
from dreamer_torchrl.modules.distributions import unimix_probs
from dreamer_torchrl.modules.spaces import Image
from dreamer_torchrl.objectives.actor_loss import reinforce_loss
from dreamer_torchrl.objectives.returns import ReturnNormalizer, lambda_return, percentiles
from dreamer_torchrl.objectives.value import replay_return
from dreamer_torchrl.objectives.world_model import kl

FEATURE, PREDICTION, GRADIENT, POOLED, UPDATE = 2e-5, 1e-3, 2e-4, 5e-3, 2e-5
"""Tolerances, relative to the largest number of a quantity. Predictions sum bins as large as 4.85e8, so that tiny
probabilities are amplified; what follows from them is compared from the recorded ones. Which of two nearly equal pixels
a maximum takes depends on the last bit, and with it the gradient of the convolution before it."""
MOMENTUM_SCALE = 0.1
"""What momentum is compared to at least: its parts are of this size, and may cancel."""


def verify(recording: Recording) -> list[Row]:
    """All comparisons of a recording."""
    rows = []
    for number in (1, 2):
        learner = Learner(recording.agent(), recording.hyperparameters())
        load_into(learner, recording.load(f"params{number - 1}"))
        step = recording.load(f"step{number}")
        batch = recording.batch(learner.agent)
        losses, data = learner.losses(batch, recording.noise(learner.agent, step))
        total(losses).backward()
        found = [
            *_world_model(recording, learner, data, step, number),
            *_imagination(recording, learner, data, step),
            *_returns(learner, data, step),
            *_losses(recording, learner, losses, data, step),
            *_gradients(recording, learner, number),
            *_optimizer(recording, learner, number),
        ]
        rows += [Row(f"{number} {row.quantity}", row.absolute, row.relative, row.tolerance) for row in found]
    return [*rows, *_acting(recording)]


def _world_model(
    recording: Recording, learner: Learner, data: TensorDictBase, step: dict[str, np.ndarray], number: int
) -> Iterable[Row]:
    yield compare("encoder", data["encoded_latents"], step["tokens"], FEATURE)
    yield compare("posterior belief", data["belief"], step["post/deter"], FEATURE)
    yield compare("posterior state", data["state"], step["post/stoch"], FEATURE)
    yield compare("posterior logits", data["posterior_logits"], step["post/logit"], FEATURE)
    yield compare("prior logits", data["prior_logits"], step["prior/logit"], FEATURE)
    for key, place in recording.observation_keys.items():
        ours = data[reconstruction_key(place)]
        if not isinstance(learner.agent.spaces[place], Image):
            yield compare(f"decoder {key}", ours, step[f"recon/{key}"], FEATURE)
            continue
        yield compare(f"decoder {key} mean", ours.mean((-1, -2, -3)), step[f"recon/{key}/mean_per_frame"], FEATURE)
        frame = ours[-1, -1, ::4, ::4]
        yield compare(f"decoder {key} last frame", frame, step[f"recon/{key}/frame[-1,-1][::4,::4]"], FEATURE)
        if number == 1 and recording.file(f"step1_recon_{key}.npz").is_file():
            whole = recording.load(f"step1_recon_{key}")[f"recon/{key}[0]"]
            yield compare(f"decoder {key} row 0", ours[0], whole, FEATURE)
    yield from _heads(learner, data["features"], step, "rep")


def _heads(learner: Learner, features: Tensor, step: dict[str, np.ndarray], prefix: str) -> Iterable[Row]:
    agent = learner.agent
    rows = slice(0, len(step["img/rew_logits[first_rows]"])) if prefix == "img" else slice(None)
    suffix = "[first_rows]" if prefix == "img" else ""
    reward_logits, reward = agent.reward(features)
    value_logits, value = agent.value(features)
    slow = learner.value_loss.slow_value()(TensorDict({"features": features}, features.shape[:-1]))
    for name, logits, prediction in (
        ("rew", reward_logits, reward),
        ("val", value_logits, value),
        ("slowval", slow["state_value_logits"], slow["state_value"]),
    ):
        yield compare(f"{prefix} {name} logits", logits[rows], step[f"{prefix}/{name}_logits{suffix}"], FEATURE)
        yield compare(f"{prefix} {name} prediction", prediction, step[f"{prefix}/{name}_pred"], PREDICTION)
    logits, probability = agent.continuation(features)
    yield compare(f"{prefix} con logits", logits, step[f"{prefix}/con_logits"], FEATURE)
    yield compare(f"{prefix} con probability", probability, step[f"{prefix}/con_prob"], FEATURE)


def _imagination(
    recording: Recording, learner: Learner, data: TensorDictBase, step: dict[str, np.ndarray]
) -> Iterable[Row]:
    dream, agent = data["imagination"].flatten(0, 1), learner.agent
    belief, state = dream["features"].split([agent.rssm.belief_size, agent.rssm.state_size], -1)
    yield compare("img belief", belief, step["img/deter"], FEATURE)
    yield compare("img state", state, step["img/stoch"], FEATURE)
    yield compare("img prior logits", agent.rssm.prior_from(belief[:, 1:]), step["img/prior_logit"], FEATURE)
    drawn = {key: torch.from_numpy(step[f"img/act/{key}"]) for key in recording.action_keys}
    action = agent.action_space.flatten(drawn)
    yield compare("img action", dream["action"][:, :-1], action[:, :-1], FEATURE)
    policy = agent.actor.distribution(agent.actor(dream["features"]))
    yield from _policy(recording, policy, step)
    yield compare("img log probability", policy.log_prob(action), step["img/pol/logp"], FEATURE)
    yield compare("img entropy", policy.entropy(), step["img/pol/entropy"], FEATURE)
    yield from _heads(learner, dream["features"], step, "img")


def _policy(recording: Recording, policy: ActionDistribution, step: dict[str, np.ndarray]) -> Iterable[Row]:
    for key, part in zip(recording.action_keys, policy.parts, strict=True):
        for name in ("logits", "mean", "stddev"):
            recorded = part_of(step, "img/pol", key, f"/{name}")
            if recorded is not None:
                yield compare(f"img policy {key} {name}", getattr(part, name), recorded, FEATURE)


def _returns(learner: Learner, data: TensorDictBase, step: dict[str, np.ndarray]) -> Iterable[Row]:
    h = learner.hyperparameters
    t = {key: torch.from_numpy(np.asarray(value)) for key, value in step.items()}
    discount = 1.0 if h.discount_in_continue else 1 - 1 / h.horizon
    value = t["img/slowval_pred"] if h.slow_target else t["img/val_pred"]
    live = discount * t["img/con_prob"][:, 1:]
    returns = lambda_return(t["img/rew_pred"][:, 1:], value[:, 1:], live, h.return_lambda)
    yield compare("img returns", returns, step["img/ret"], FEATURE)
    weight = (discount * t["img/con_prob"]).cumprod(-1) / discount
    yield compare("img weight", weight, step["img/weight"], FEATURE)
    rep = {key: data[key].squeeze(-1).float() for key in ("reward", "terminated", "done")}
    replayed = replay_return(
        rep["reward"], t["rep/boot"], rep["terminated"], rep["done"], 1 - 1 / h.horizon, h.replay_lambda
    )
    yield compare("rep returns", replayed, step["rep/ret"], FEATURE)
    normalizer = ReturnNormalizer(h.return_percentiles, h.return_rate, h.return_limit)
    normalizer.low.copy_(t["retnorm/before"][0])
    normalizer.high.copy_(t["retnorm/before"][1])
    low_high = torch.stack(percentiles(t["img/ret"], h.return_percentiles))
    yield compare("normalizer percentiles", low_high, step["retnorm/batch_perc"], FEATURE)
    normalizer.update(t["img/ret"])
    yield compare("normalizer after", torch.stack([normalizer.low, normalizer.high]), step["retnorm/after"], FEATURE)
    ours = torch.stack([normalizer.low, normalizer.scale])
    yield compare("normalizer offset and scale", ours, step["retnorm/offset_scale"], FEATURE)
    advantage = (t["img/ret"] - value[:, :-1]) / normalizer.scale
    yield compare("img advantage", advantage, step["img/adv"], FEATURE)
    # End to end, our own predictions feed these: as wide as the predictions' tolerance.
    ours = torch.stack([learner.actor_loss.normalizer.low, learner.actor_loss.normalizer.high])
    yield compare("normalizer after, end to end", ours, step["retnorm/after"], PREDICTION)
    yield compare(
        "img returns, end to end", data["imagination", "lambda_target"][..., :-1, :], step["img/ret"], PREDICTION
    )


def _losses(
    recording: Recording, learner: Learner, losses: TensorDictBase, data: TensorDictBase, step: dict[str, np.ndarray]
) -> Iterable[Row]:
    h, agent = learner.hyperparameters, learner.agent
    t = {key: torch.from_numpy(np.asarray(value)) for key, value in step.items()}
    both = kl(agent.rssm.latent, data["posterior_logits"], data["prior_logits"], h.free_nats)
    for name, loss in zip(("dyn", "rep"), both, strict=True):
        yield compare(f"loss {name} per step", loss, step[f"losses/{name}"], FEATURE)
    dream = data["imagination"].flatten(0, 1)
    actions = {key: t[f"img/act/{key}"] for key in recording.action_keys}
    policy = agent.actor.distribution(agent.actor(dream["features"]))
    log_prob, entropy = policy.log_prob(agent.action_space.flatten(actions))[:, :-1], policy.entropy()[:, :-1]
    policy_loss = reinforce_loss(log_prob, t["img/adv"], entropy, t["img/weight"][:, :-1], h.entropy_scale)
    yield compare("loss policy per step", policy_loss, step["img/policy_loss"], FEATURE)
    cost, weights = learner.value_loss.cost, (1.0, h.slow_scale)
    targets = t["img/ret"].unsqueeze(-1), t["img/slowval_pred"][:, :-1].unsqueeze(-1)
    value_loss = cost(dream["state_value_logits"][:, :-1], torch.cat(targets, -1), weights)
    yield compare("loss value per step", t["img/weight"][:, :-1] * value_loss, step["img/value_loss"], FEATURE)
    targets = t["rep/ret"].unsqueeze(-1), t["rep/slowval_pred"][:, :-1].unsqueeze(-1)
    replay_loss = cost(t["rep/val_logits"][:, :-1], torch.cat(targets, -1), weights)
    replay_loss = replay_loss * (~data["done"][:, :-1, 0])
    yield compare("loss repval per step", replay_loss, step["losses/repval"], FEATURE)
    terms = {
        "dynamics": (("dyn",), h.dynamics_scale, FEATURE),
        "representation": (("rep",), h.representation_scale, FEATURE),
        "reconstruction": (tuple(recording.observation_keys), h.reconstruction_scale, FEATURE),
        "reward": (("rew",), h.reward_scale, FEATURE),
        "continue": (("con",), h.continue_scale, FEATURE),
        "actor": (("policy",), h.actor_scale, PREDICTION),
        "value": (("value",), h.value_scale, PREDICTION),
        "replay_value": (("repval",), h.replay_value_scale, PREDICTION),
    }
    for ours, (theirs, scale, tolerance) in terms.items():
        recorded = scale * sum(step[f"losses/{name}"].mean(dtype=np.float64) for name in theirs)
        yield compare(f"loss {ours}", losses[f"loss_{ours}"], recorded, tolerance)
    yield compare("loss total", total(losses), step["loss_total"], FEATURE)


def _gradients(recording: Recording, learner: Learner, number: int) -> Iterable[Row]:
    recorded = recording.load(f"grads{number}")
    for link in links(learner.agent):
        ours = torch.from_numpy(link.to_official(link.parameter.grad))
        tolerance = POOLED if link.name.startswith("enc/cnn") else GRADIENT
        yield compare(f"grad {link.name}", ours, recorded[link.name], tolerance)


def _optimizer(recording: Recording, learner: Learner, number: int) -> Iterable[Row]:
    """One step from the recorded state under the recorded gradients: at first the update is nearly their sign."""
    gradients = recording.load(f"grads{number}")
    before = recording.load(f"params{number - 1}")
    if number > 1:
        for prefix, part in ((SECOND_MOMENT, "nu"), (MOMENTUM, "mu")):
            arrays = recording.load(f"opt{number - 1}_{part}")
            before |= {f"{prefix}/{name.removeprefix(prefix + '/')}": array for name, array in arrays.items()}
        before["opt/step/value"] = recording.load(f"opt{number - 1}_misc")["step.value"]
    load_into(learner, before)
    for link in links(learner.agent):
        link.parameter.grad = link.from_official(gradients[link.name])
    learner.optimizer.step()
    learner.slow_update.step()
    after = save_official_params(learner)
    for kind, prefix, part in (
        ("param", "", f"params{number}"),
        ("nu", f"{SECOND_MOMENT}/", f"opt{number}_nu"),
        ("mu", f"{MOMENTUM}/", f"opt{number}_mu"),
    ):
        recorded = recording.load(part)
        for link in links(learner.agent):
            ours = torch.from_numpy(after[prefix + link.name])
            least = MOMENTUM_SCALE if kind == "mu" else 0.0
            yield compare(f"{kind} {link.name}", ours, recorded[link.name], UPDATE, least)
    recorded = recording.load(f"params{number}")
    for name in after:
        if name.startswith("slowval/"):
            yield compare(f"slow critic {name}", torch.from_numpy(after[name]), recorded[name], UPDATE)


def _acting(recording: Recording) -> Iterable[Row]:
    learner = Learner(recording.agent(), recording.hyperparameters())
    load_into(learner, recording.load("params0"))
    agent, arrays = learner.agent, recording.load("policy")
    t = {key: torch.from_numpy(value) for key, value in arrays.items()}
    for i in (0, 1):
        now = f"t{i}"
        seen = {key: t[f"{now}/obs/{name}"] for name, key in recording.observation_keys.items()}
        encoded = agent.encoder(*[seen[key] for key in agent.encoder.in_keys])
        previous, drawn = (
            agent.action_space.flatten({key: part_of(t, f"{now}/{name}", key) for key in recording.action_keys})
            for name in ("in/prevact", "out/act")
        )
        reset = t[f"{now}/obs/is_first"].unsqueeze(-1)
        latents = t[f"{now}/in/deter"], t[f"{now}/in/stoch"]
        _, _, logits = agent.rssm(encoded, previous, reset, *latents)
        noise = uniform_for(unimix_probs(logits, agent.rssm.unimix), t[f"{now}/out/stoch"])
        action_noise = recording.action_noise(agent, t, f"{now}/out/act", f"{now}/pol")
        with set_exploration_type(ExplorationType.RANDOM):
            belief, state, action = agent.policy.step(encoded, previous, reset, *latents, noise, action_noise)
        yield compare(f"acting {i} belief", belief, arrays[f"{now}/out/deter"], FEATURE)
        yield compare(f"acting {i} state", state, arrays[f"{now}/out/stoch"], FEATURE)
        yield compare(f"acting {i} action", action, drawn, FEATURE)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 if all of it holds."""
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.interop.verify", description=__doc__)
    parser.add_argument("folder", help="where the recording is")
    parser.add_argument("--case", required=True, help="its name, such as proprio_cont")
    options = parser.parse_args(arguments)
    try:
        recording = Recording(options.folder, options.case)
        family = family_of(recording)
        rows = verify(recording) if family is None else verify_family(family)
    except (FileNotFoundError, KeyError, ValueError) as error:
        parser.error(f"{options.case} cannot be compared: {error}")
    print(f"{'quantity':44} {'absolute':>10} {'relative':>10} {'tolerance':>10}")
    print("\n".join(str(row) for row in rows))
    wrong = [row for row in rows if not row.ok]
    print(f"{len(rows) - len(wrong)} of {len(rows)} quantities agree with the recording.")
    return 1 if wrong else 0
