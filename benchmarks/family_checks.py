"""What is compared in each stage of a replayed update of Dreamer V1 or V2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from comparison import Row, compare
from family_recording import Arrays, FamilyRecording
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from dreamer_torchrl.learners.learner import total
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.decoder import reconstruction_key
from dreamer_torchrl.modules.distributions import BernoulliDist, Draw
from dreamer_torchrl.modules.ensemble import Disagreement
from dreamer_torchrl.modules.heads import Head, normal_cost
from dreamer_torchrl.modules.spaces import Image
from dreamer_torchrl.objectives.dynamics import DynamicsActorLoss

FORWARD, GRADIENT, UPDATE = 2e-5, 1e-4, 2e-5
"""Tolerances, relative to the largest number of a quantity."""


class StageChecks:
    """The rows of all stages of one update, by what a stage gave, took and passed on."""

    def __init__(self, recording: FamilyRecording, learner: SeparateLearner, step: Arrays):
        self.recording, self.learner, self.agent, self.step = recording, learner, learner.agent, step
        self.tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in step.items()}

    def __call__(
        self, group: str, losses: TensorDictBase, taken: TensorDictBase, given: TensorDictBase
    ) -> Iterable[Row]:
        extra = self.learner.loss.extra_modules
        if group == "model":
            return self.model(losses, given)
        if group == "actor":
            return self.actor(self.prefix, self.learner.actor_loss, losses, taken, given)
        if group == "value":
            return self.value(self.prefix, self.agent.value, losses, given)
        if group.endswith("ensemble"):
            return self.ensemble(extra[0], losses, given)
        if group.endswith("explorer"):
            return self.explorer(extra[0], losses, taken, given)
        return self.value("expl/", extra[0].critic, losses, given)

    @property
    def prefix(self) -> str:
        return "imag/" if self.recording.first else "task/"

    def found(self, name: str, ours: Tensor, *places: str, tolerance: float = FORWARD) -> Iterator[Row]:
        """Compare with the first of these arrays that was recorded."""
        for place in places:
            if place in self.step:
                yield compare(name, ours, self.step[place], tolerance)
                return

    def model(self, losses: TensorDictBase, data: TensorDictBase) -> Iterator[Row]:
        latent = self.agent.rssm.latent
        yield compare("embedding", data["encoded_latents"], self.step["wm/embed"], FORWARD)
        for kind, name in (("post", "posterior"), ("prior", "prior")):
            recorded = self.recording.parameters(self.tensors, f"wm/{kind}")
            yield compare(f"{name} parameters", data[f"{name}_logits"], recorded, FORWARD)
            entropy = latent.entropy(data[f"{name}_logits"])
            yield from self.found(f"{name} entropy", entropy, f"wm/{kind}_ent")
            yield from self.found(f"{name} mean entropy", entropy.mean(), f"wm/metric/{kind}_ent")
        yield compare("belief", data["belief"], self.step["wm/post/deter"], FORWARD)
        yield compare("state", data["state"], self.step["wm/post/stoch"], FORWARD)
        yield compare("features", self._reordered(data["features"]), self.step["wm/feat"], FORWARD)
        for name in ("deter", "stoch"):
            last = data["belief" if name == "deter" else "state"][:, -1]
            yield from self.found(f"carried {name}", last, f"wm/last_state/{name}")
        yield from self._likelihoods(data)
        divergence, _ = latent.kl(data["posterior_logits"], data["prior_logits"])
        yield from self.found("KL per step", divergence, "wm/kl_value", "wm/kl_per_step")
        scale = self.recording.kl_scale
        both = losses["loss_dynamics"] + losses["loss_representation"]
        joint = losses["loss_dynamics"] if self.recording.one_kl else both
        yield from self.found("loss KL", joint / scale, "wm/metric/kl_loss", "wm/div_after_free_nats")
        objective = total(losses) - both + joint
        yield from self.found("loss model", objective, "wm/model_loss", "loss/model")

    def _likelihoods(self, data: TensorDictBase) -> Iterator[Row]:
        agent, loss = self.agent, self.learner.world_model_loss
        for key, space in agent.spaces.items():
            ours = data[reconstruction_key(key)]
            if isinstance(space, Image):
                ours = ours - 0.5
                means = ours.mean((-1, -2, -3))
                yield from self.found(f"decoder {key} mean", means, f"wm/recon_{key}_mean_per_frame")
                yield from self.found(f"decoder {key} row 0", ours[0], f"wm/recon_{key}[0]")
            else:
                yield compare(f"decoder {key}", ours, self.step[f"wm/recon/{key}"], FORWARD)
            yield self._likelihood(key, -agent.decoder.cost(space, data[reconstruction_key(key)], data[key]))
        yield from self.found("reward", data["predicted_reward"], "wm/reward/mean", "wm/reward_pred")
        rewards = data["reward"].tanh() if loss.reward_tanh else data["reward"]
        yield self._likelihood("reward", -agent.reward.cost(data["predicted_reward"], rewards))
        name = "pcont" if self.recording.first else "discount"
        if f"wm/like/{name}" in self.step:
            logits = data["continue_logits"]
            yield from self.found("continue logits", logits, "wm/discount/logits", "wm/pcont_logits")
            target = (~data["terminated"]).float() * loss.continue_target
            scale = loss.scales["continue"] if self.recording.first else 1.0  # V1 records it so
            yield self._likelihood(name, scale * BernoulliDist(logits).log_prob(target))

    def _likelihood(self, name: str, ours: Tensor) -> Row:
        recorded = self.step[f"wm/like/{name}"]
        return compare(f"likelihood {name}", ours if recorded.shape else ours.mean(), recorded, FORWARD)

    def _reordered(self, features: Tensor) -> Tensor:
        """Features as the official code has them: the state first."""
        belief = self.agent.rssm.belief_size
        return torch.cat([features[..., belief:], features[..., :belief]], -1)

    def dreamt(self, value: Tensor) -> Tensor:
        """Of a dream ``[B, T, H, ...]``, ``[H, N, ...]`` as recorded."""
        value = value if self.learner.actor_loss.last_start else value[:, :-1]
        return value.flatten(0, 1).movedim(0, 1)

    def actor(
        self,
        prefix: str,
        loss: DynamicsActorLoss,
        losses: TensorDictBase,
        taken: TensorDictBase,
        given: TensorDictBase,
    ) -> Iterator[Row]:
        """Dreams, computed once more from the same noise, and what the loss made of them."""
        first, rssm = self.recording.first, self.agent.rssm
        rollout = loss.networks["imagine"](taken.copy()).select("features", "action")
        rollout.batch_size = rollout["features"].shape[:3]
        for name in ("continuation", "value", "reward"):
            loss.networks[name](rollout)
        rollout["scaled_reward"] = loss.normalizer(rollout["predicted_reward"])  # it moves with each call
        dream = TensorDict({key: self.dreamt(value) for key, value in rollout.items()})
        dream.batch_size = dream["features"].shape[:2]
        start = 1 if first else 0  # V1 records no start
        belief, state = dream["features"].split([rssm.belief_size, rssm.state_size], -1)
        seq = prefix if first else f"{prefix}target/seq/"
        yield compare(f"{prefix}belief", belief[start:], self.step[f"{seq}deter"], FORWARD)
        yield compare(f"{prefix}state", state[start:], self.step[f"{seq}stoch"], FORWARD)
        recorded = self.recording.parameters(self.tensors, seq.rstrip("/"))
        yield compare(f"{prefix}prior parameters", rssm.prior_from(belief[1:]), recorded[1 - start :], FORWARD)
        yield compare(f"{prefix}action", dream["action"][:-1], self.step[f"{seq}action"][1 - start :], FORWARD)
        policies = loss.actor.get_dist(dream[:-1])
        place = f"{prefix}actor" if first else f"{prefix}imagine/actor"
        yield from self._policy(f"{prefix}policy", policies.parts[0], place)
        # What the loss itself wrote
        seen = given["imagination"]
        weight, target = (self.dreamt(seen[key].squeeze(-1)) for key in ("discount_weight", "lambda_target"))
        yield from self.found(f"{prefix}weight", weight, f"{seq}weight")
        yield from self.found(f"{prefix}target", target[:-1], f"{prefix}target/target", "imag/returns")
        yield from self.found(f"{prefix}loss actor", total(losses), f"{prefix}actor_loss/loss", "loss/actor")
        names = {
            "continue_logits": ("imagine/discount/logits", "pcont_logits"),
            "state_value": ("target/target_critic/mean", "value"),
            "predicted_reward": ("reward_norm/in", "reward"),
            "scaled_reward": ("target/seq/reward",),
        }
        for ours, theirs in names.items():
            yield from self.found(f"{prefix}{ours}", dream[ours][start:], *(f"{prefix}{name}" for name in theirs))
        if not first:
            policy = loss.actor.get_dist(dream[:-2])
            yield from self._policy(f"{prefix}judged policy", policy.parts[0], f"{prefix}actor_loss/actor")
            place = f"{prefix}actor_loss"
            yield compare(f"{prefix}entropy", policy.entropy(), self.step[f"{place}/entropy"], FORWARD)
            log_prob = policy.log_prob(dream["action"][:-2])
            yield compare(f"{prefix}log probability", log_prob, self.step[f"{place}/logprob"], FORWARD)
            yield compare(f"{prefix}mode", policy.mode, self.step[f"{place}/mode"], FORWARD)

    def _policy(self, name: str, policy: Draw, place: str) -> Iterator[Row]:
        for ours, theirs in (("logits", "logits"), ("loc", "mean"), ("scale", "std")):
            places = f"{place}/{theirs}", f"{place}/pretanh_{theirs}"
            if hasattr(policy, ours):
                yield from self.found(f"{name} {theirs}", getattr(policy, ours), *places)

    def value(self, prefix: str, critic: Head, losses: TensorDictBase, data: TensorDictBase) -> Iterator[Row]:
        seen = data["imagination"]
        _, value = critic(self.dreamt(seen["features"]))
        yield from self.found(f"{prefix}critic", value, "imag/value_pred_for_loss")
        yield from self.found(f"{prefix}critic", value[:-1], f"{prefix}critic_loss/critic/mean")
        target = self.dreamt(seen["lambda_target"])
        log_prob = -normal_cost(value, target)[:-1]
        yield from self.found(f"{prefix}critic likelihood", log_prob, f"{prefix}critic_loss/logprob")
        yield from self.found(f"{prefix}loss critic", total(losses), f"{prefix}critic_loss/loss", "loss/value")

    def ensemble(self, explorer: Plan2Explore, losses: TensorDictBase, data: TensorDictBase) -> Iterator[Row]:
        predictions = explorer.ensemble(data["features"][:, :-1], data["previous_action"][:, :-1])
        for i, prediction in enumerate(predictions):
            yield compare(f"ensemble {i}", prediction, self.step[f"ensemble/disag{i}/mean"], FORWARD)
        yield compare("loss ensemble", total(losses), self.step["metrics/expl_expl_loss"], FORWARD)

    def explorer(
        self, explorer: Plan2Explore, losses: TensorDictBase, taken: TensorDictBase, given: TensorDictBase
    ) -> Iterator[Row]:
        rollout = explorer.actor_loss.networks["imagine"](taken.copy())
        features, action = rollout["features"], rollout["action"]
        predictions = explorer.ensemble(features, F.pad(action[..., :-1, :], (0, 0, 1, 0)))
        for i, prediction in enumerate(predictions):
            ours = self.dreamt(prediction)
            yield compare(f"expl/ensemble {i}", ours, self.step[f"expl/intr/disag{i}/mean"], FORWARD)
        disagreement = self.dreamt(Disagreement(explorer.ensemble, explorer.spread)(features, action))
        yield compare("expl/disagreement", disagreement, self.step["expl/intr/intr_rewnorm/in"], FORWARD)
        yield from self.actor("expl/", explorer.actor_loss, losses, taken, given)
