"""Acting steps, and the three kinds of the actor's gradient, of a recording of Dreamer V1 or V2."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from comparison import Row, compare
from family_recording import FamilyRecording, as_drawn, noise_for
from recording import uniform_for
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.interop.official_names import Link
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.squashed import TanhNormal

FORWARD, GRADIENT = 2e-5, 1e-4
"""Tolerances, relative to the largest number of a quantity."""


class Acting:
    """Acting steps from the first recorded parameters, which the agent has."""

    def __init__(self, recording: FamilyRecording, agent: Agent, explorer: Plan2Explore | None):
        self.recording, self.agent, self.explorer = recording, agent, explorer
        self.t = {key: torch.from_numpy(value) for key, value in recording.load("policy").items()}
        self.batch = recording.load("batch")

    def rows(self) -> Iterator[Row]:
        for tag in dict.fromkeys(key.split("/out/")[0] for key in self.t if key.endswith("/out/action")):
            for row in self.step(tag):
                yield Row(f"acting {tag} {row.quantity}", row.absolute, row.relative, row.tolerance)

    @torch.no_grad()
    def step(self, tag: str) -> Iterator[Row]:
        t, agent, latent = self.t, self.agent, self.agent.rssm.latent
        inputs = self.inputs(tag)
        parameters = self.recording.parameters(t, f"{tag}/out")
        _, _, ours = agent.rssm(*inputs)
        yield compare("posterior parameters", ours, parameters, FORWARD)
        actor = self.explorer.explorer if self.explorer and tag.endswith("explore") else agent.actor
        policy = Policy(agent.encoder, agent.rssm, actor)
        noise = None if tag.endswith("statemean") else noise_for(latent, parameters, t[f"{tag}/out/stoch"])
        evaluated, before = "eval" in tag, t[f"{tag}/action_before_noise"]
        action_noise = None if evaluated else self.drawn(tag, before)
        with set_exploration_type(ExplorationType.DETERMINISTIC if evaluated else ExplorationType.RANDOM):
            belief, state, action = policy.step(*inputs, noise, action_noise)
        yield compare("belief", belief, t[f"{tag}/out/deter"], FORWARD)
        yield compare("state", state, t[f"{tag}/out/stoch"], FORWARD)
        chosen = actor.distribution(actor(latent.features(belief, state))).parts[0]
        for name, theirs in (("logits", "logits"), ("loc", "mean"), ("scale", "std")):
            recorded = t.get(f"{tag}/actor/{theirs}", t.get(f"{tag}/actor/pretanh_{theirs}"))
            if recorded is not None and hasattr(chosen, name):
                yield compare(f"policy {theirs}", getattr(chosen, name), recorded, FORWARD)
        if evaluated and self.recording.first and not self.recording.discrete:
            samples = t[f"{tag}/normal_draw0"]
            make, raw = actor.distribution_options["continuous"], actor(latent.features(belief, state)).chunk(2, -1)
            given = make(*raw, samples=samples)
            yield compare("mode of the first row", given.mode[0], before[0], FORWARD)
            action = self.likeliest(given)
        yield compare("action before noise", action, before, FORWARD)
        explored = self.explored(tag, action)
        yield compare("action", explored, t[f"{tag}/out/action"], FORWARD)

    def inputs(self, tag: str) -> tuple[Tensor, ...]:
        """Embedding, action before, whether an episode starts, and latents before."""
        t, agent, time = self.t, self.agent, tag[:2]
        if self.recording.first:
            rows, now = t[f"{tag}/rows"], int(t[f"{tag}/obs_t"])
            seen = {"image": torch.from_numpy(self.batch["image"])[rows, now]}
            reset, carried = t[f"{tag}/reset"], f"{tag}/in"
        else:
            seen = {key: t[f"{time}/obs/{key}"] for key in agent.encoder.in_keys}
            reset, carried = t[f"{time}/obs/is_first"], f"{time}/in"
        encoded = agent.encoder(*(seen[key] for key in agent.encoder.in_keys))
        belief, state = agent.rssm.initial(len(encoded))
        previous = encoded.new_zeros(len(encoded), agent.action_space.size)
        if f"{carried}/deter" in t:
            belief, previous = t[f"{carried}/deter"], t[f"{carried}/action"]
            state = as_drawn(t[f"{carried}/stoch"], agent.rssm.latent.shape)
        return encoded, previous, reset.unsqueeze(-1), belief, state

    def drawn(self, tag: str, action: Tensor) -> Tensor:
        """Noise of the actor's draw."""
        if self.recording.discrete:
            return uniform_for(self.t[f"{tag}/actor/logits"].softmax(-1), action).unsqueeze(-1)
        return self.t[f"{tag}/normal_draw0"][0] if self.recording.first else self.t[f"{tag}/truncnormal_raw"]

    def explored(self, tag: str, action: Tensor) -> Tensor:
        amount = self.recording.amount(tag)
        if not amount:
            return action
        space, drawn = self.agent.action_space, self.t[f"{tag}/out/action"]
        if self.recording.discrete:
            noise = uniform_for(amount / space.size + (1 - amount) * action, drawn).unsqueeze(-1)
        else:
            noise = self.t[max(key for key in self.t if key.startswith(f"{tag}/normal_draw"))][0]
        return space.explored(action, amount, noise)

    @staticmethod
    def likeliest(policy: TanhNormal) -> Tensor:
        """The sample that is best in the first row, in all rows: the official code compares no others."""
        best = policy.log_prob(policy.samples)[:, 0].argmax()
        return policy.samples[best]


def variants(recording: FamilyRecording, learner: SeparateLearner, links: list[Link]) -> Iterator[Row]:
    """Loss and gradient of the actor of each kind, from the last parameters and the first states; not of V1."""
    t = {key: torch.from_numpy(value) for key, value in recording.load("actor_variants").items()}
    step, batch = recording.load("step1"), recording.load("batch")
    latent = learner.agent.rssm.latent
    start = {
        "belief": torch.from_numpy(step["wm/post/deter"]),
        "state": as_drawn(torch.from_numpy(step["wm/post/stoch"]), latent.shape),
        "terminated": torch.from_numpy(batch["is_terminal"]).unsqueeze(-1),
    }
    data = TensorDict(start, batch_size=start["belief"].shape[:2])
    for kind in ("dynamics", "reinforce", "both"):
        drawn = recording.dreamt(learner, t, f"{kind}/")
        prior, action = (x.movedim(0, 1).unflatten(0, data.batch_size) for x in drawn)
        data["noise"] = TensorDict(prior=prior, action=action, batch_size=data.batch_size)
        learner.actor_loss.mix = recording.mix(kind)
        losses, given = learner.actor_loss(data)
        learner.zero_grad()
        losses["loss_actor"].backward()
        yield compare(f"{kind} loss", losses["loss_actor"], t[f"{kind}/actor_loss/loss"], FORWARD)
        for ours, theirs in (("discount_weight", "seq/weight"), ("lambda_target", "target")):
            recorded = t[f"{kind}/target/{theirs}"]  # [H + 1 or H, N]
            found = given["imagination", ours].squeeze(-1).flatten(0, 1).movedim(0, 1)
            yield compare(f"{kind} {theirs}", found[: len(recorded)], recorded, FORWARD)
        for link in links:
            if f"{kind}/grad/{link.name}" in t:
                recorded = link.from_official(t[f"{kind}/grad/{link.name}"].numpy())
                yield compare(f"{kind} grad {link.name}", link.parameter.grad, recorded, GRADIENT)
