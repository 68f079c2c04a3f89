"""A recording of the official Dreamer V2 code: its agent and learner in our parts, and what it drew."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from family_recording import (
    Arrays,
    FamilyRecording,
    as_drawn,
    head,
    kind_of,
    known,
    mlp,
    noise_for,
    observation_spec,
    steps,
)
from recording import uniform_for
from tensordict import TensorDict
from torch import Tensor

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.plan2explore import Plan2Explore
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.cores import LayerNormGRU
from dreamer_torchrl.modules.decoder import Decoder
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.heads import AlwaysContinue, ContinueHead, NormalHead
from dreamer_torchrl.modules.latents import CategoricalLatent, GaussianLatent
from dreamer_torchrl.modules.squashed import TruncatedNormal
from dreamer_torchrl.modules.strided import StridedEncoder, TransposedDecoder


class RecordedDraws(TruncatedNormal):
    """A truncated normal whose noise is the draw itself: in float32 no noise repeats it to more than three digits."""

    def _draw(self, noise: Tensor) -> Tensor:
        return self.draw_of(noise)


class SecondRecording(FamilyRecording):
    """A recording of V2, with plan2explore or without."""

    first = False

    @property
    def observations(self) -> list[tuple[str, list[int]]]:
        return self.config["obs_space"]

    @property
    def kl_scale(self) -> float:
        return self.settings["loss_scales"].get("kl", 1.0)

    @property
    def one_kl(self) -> bool:
        """Whether the KL is not balanced: both gradients are of one number, with free nats of each step."""
        return self.settings["kl"]["balance"] == 0.5

    @property
    def explores(self) -> bool:
        return self.settings["expl_behavior"] == "Plan2Explore"

    def agent(self) -> Agent:
        c = self.settings
        rssm, encoder, decoder, actor = c["rssm"], c["encoder"], c["decoder"], c["actor"]
        self._check()
        size = Size(rssm["deter"], rssm["hidden"], rssm["stoch"], max(rssm["discrete"], 1), 1, 1, 1)
        gaussian = partial(GaussianLatent, min_std=rssm["min_std"], activation=rssm["std_act"])
        core_kind = kind_of(rssm)
        images = [{"depth": part["cnn_depth"], "activation": part["act"]} for part in (encoder, decoder)]
        return Agent(
            *(observation_spec(self.observations), self.action_spec(), size),
            encoder=partial(
                *(Encoder,), **mlp(encoder["mlp_layers"]), symlog=False, kind=kind_of(encoder),
                image=partial(StridedEncoder, **images[0]),
            ),
            decoder=partial(
                *(Decoder,), **mlp(decoder["mlp_layers"]), symlog=False, normal=True, kind=kind_of(decoder),
                image=partial(TransposedDecoder, **images[1]),
            ),
            layers=core_kind,
            core=partial(LayerNormGRU, layers=core_kind),
            latent=partial(CategoricalLatent, unimix=0.0) if rssm["discrete"] else gaussian,
            prior_layers=1,
            reward=head(NormalHead, c["reward_head"]),
            continuation=head(ContinueHead, c["discount_head"]) if c["pred_discount"] else AlwaysContinue,
            value=head(NormalHead, c["critic"]),
            actor=lambda features, space, _: Actor(
                *(features, space, actor["units"]), layers=actor["layers"], kind=kind_of(actor),
                continuous=partial(RecordedDraws, min_std=actor["min_std"]),
            ),
        )  # fmt: skip

    def learner(self, kind: Callable[..., SeparateLearner], agent: Agent, **options: Any) -> SeparateLearner:
        c = self.settings
        kl, scales, norm = c["kl"], c["loss_scales"], c["reward_norm"]
        balance = kl["balance"]
        shares = (1.0, 1.0) if self.one_kl else (balance, 1 - balance)
        h = Hyperparameters(
            imagination_length=c["imag_horizon"],
            horizon=self.horizon,
            discount_in_continue=c["pred_discount"],
            return_lambda=c["discount_lambda"],
            entropy_scale=self.scheduled(c["actor_ent"]),
            free_nats=kl["free"],
            reward_grad="reward" in c["grad_heads"],
            dynamics_scale=self.kl_scale * shares[0],
            representation_scale=self.kl_scale * shares[1],
            reward_scale=scales.get("reward", 1.0),
            continue_scale=scales.get("discount", 1.0) if c["pred_discount"] else 0.0,
        )
        groups = {"model": "model_opt", "actor": "actor_opt", "value": "critic_opt", "ensemble": "expl_opt"}
        adam = {ours: c[name] for ours, name in groups.items()}
        how = {
            "rates": {name: part["lr"] for name, part in adam.items()},
            "adam_eps": {name: part["eps"] for name, part in adam.items()},
            "max_norm": {name: part["clip"] for name, part in adam.items()},
            "decay": {name: part["wd"] for name, part in adam.items()},
            "gradient_mix": self.mix(self.config["resolved"]["actor_grad"]),
            "true_start": c["pred_discount"],
            "target_every": c["slow_target_update"] if c["slow_target"] else 0,
            "target_fraction": c["slow_target_fraction"],
            "free_average": kl["free_avg"] and not self.one_kl,
            "stored_latents": True,
            "reward_tanh": c["clip_rewards"] == "tanh",
            "continue_grad": "discount" in c["grad_heads"],
            "reward_momentum": norm["momentum"],
            "reward_factor": norm["scale"],
        }
        extra = [self.explorer()] if self.explores else []
        return kind(agent, h, extra_losses=extra, **how | options)

    def explorer(self) -> Plan2Explore:
        c = self.settings
        members, norm = c["expl_head"], c["expl_reward_norm"]
        return Plan2Explore(
            models=c["disag_models"],
            layers=members["layers"],
            units=members["units"],
            kind=kind_of(members),
            scale=c["expl_intr_scale"] * norm["scale"],
            extrinsic_scale=c["expl_extr_scale"] * norm["scale"],
            reward_momentum=norm["momentum"],
        )

    def mix(self, kind: str) -> float:
        """The share of the gradient through the dynamics under this ``actor_grad``."""
        return {"dynamics": 1.0, "reinforce": 0.0}.get(kind) or (
            self.scheduled(self.settings["actor_grad_mix"]) if kind == "both" else 0.0
        )

    def scheduled(self, value: float | str) -> float:
        """A number, or a schedule's at the recorded step."""
        if not isinstance(value, str):
            return float(value)
        name, arguments = value.split("(", 1)
        known("schedule", name, ("linear",))
        start, end, duration = ast.literal_eval(f"({arguments}")
        return float(np.interp(self.config["tfstep"], (0, duration), (start, end)))

    def batch(self, agent: Agent, carried: Arrays | None = None) -> TensorDict:
        """Steps ``[B, 1 + T]`` after the carried latents."""
        return steps(agent, self.load("batch"), [name for name, _ in self.observations], carried)

    def dreamt(self, learner: SeparateLearner, t: Mapping[str, Tensor], behaviour: str) -> tuple[Tensor, Tensor]:
        rssm, prefix = learner.agent.rssm, f"{behaviour}target/seq"
        with torch.no_grad():  # in the reports of the variants, the parameters are left out
            prior = rssm.prior_from(t[f"{prefix}/deter"][1:])
        if f"{prefix}/logit" in t or f"{prefix}/mean" in t:
            prior = self.parameters(t, prefix)[1:]
        prior = noise_for(rssm.latent, prior, t[f"{prefix}/stoch"][1:])
        if not self.discrete:
            return prior, t[f"{behaviour}imagine/truncnormal_raw"]
        with torch.no_grad():
            features = rssm.latent.features(t[f"{prefix}/deter"], as_drawn(t[f"{prefix}/stoch"], rssm.latent.shape))
            logits = learner.agent.actor(features[:-1])
        return prior, uniform_for(logits.softmax(-1), t[f"{prefix}/action"][1:]).unsqueeze(-1)

    def _check(self) -> None:
        """Refuse what our parts do not know."""
        c = self.settings
        for name, value, possible in (
            ("rssm.ensemble", c["rssm"]["ensemble"], (1,)),
            ("kl.forward", c["kl"]["forward"], (False,)),
            ("clip_rewards", c["clip_rewards"], ("identity", "tanh")),
            ("encoder.cnn_kernels", c["encoder"]["cnn_kernels"], ([4, 4, 4, 4],)),
            ("decoder.cnn_kernels", c["decoder"]["cnn_kernels"], ([5, 5, 6, 6],)),
            ("actor_dist", self.config["resolved"]["actor_dist"], ("onehot", "trunc_normal")),
            ("reward_norm.eps", c["reward_norm"]["eps"], (1e-8,)),
            ("disag_target", c["disag_target"], ("stoch",)),
            ("disag_offset", c["disag_offset"], (1,)),
            ("disag_log", c["disag_log"], (False,)),
            ("disag_action_cond", c["disag_action_cond"], (True,)),
            *((f"{name}.dist", c[name]["dist"], ("mse",)) for name in ("reward_head", "critic", "expl_head")),
            *((f"{name}.opt", c[name]["opt"], ("adam",)) for name in ("model_opt", "actor_opt", "critic_opt")),
            ("decoder in grad_heads", "decoder" in c["grad_heads"], (True,)),
        ):
            known(name, value, possible)
        for name, shape in self.observations:
            known(f"loss_scales.{name}", c["loss_scales"].get(name, 1.0), (1.0,))
            if len(shape) == 3:
                known("encoder.norm", c["encoder"]["norm"], ("none",))
                known("decoder.norm", c["decoder"]["norm"], ("none",))
