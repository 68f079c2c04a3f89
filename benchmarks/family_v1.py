"""A recording of the official Dreamer V1 code: its agent and learner in our parts, and what it drew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from family_recording import Arrays, FamilyRecording, known, noise_for, observation_spec, steps
from recording import uniform_for
from tensordict import TensorDict
from torch import Tensor

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.learners.separate import SeparateLearner
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.modules.cores import PlainGRU
from dreamer_torchrl.modules.decoder import Decoder
from dreamer_torchrl.modules.encoder import Encoder
from dreamer_torchrl.modules.heads import AlwaysContinue, ContinueHead, NormalHead
from dreamer_torchrl.modules.latents import GaussianLatent
from dreamer_torchrl.modules.layers import dense_layers
from dreamer_torchrl.modules.squashed import TanhNormal
from dreamer_torchrl.modules.strided import StridedEncoder, TransposedDecoder


class FirstRecording(FamilyRecording):
    """A recording of V1."""

    first = True
    one_kl = True  # its two gradients are of one number

    @property
    def kl_scale(self) -> float:
        return self.settings["kl_scale"]

    @property
    def observations(self) -> list[tuple[str, list[int]]]:
        return [("image", self.config["image"])]

    def agent(self) -> Agent:
        c, layers = self.settings, self.config["layers"]
        kind = dense_layers(activation=c["dense_act"])
        units, depth, activation = c["num_units"], c["cnn_depth"], c["cnn_act"]
        size = Size(c["deter_size"], c["deter_size"], c["stoch_size"], 1, 1, depth, units)
        image = {"depth": depth, "activation": activation}
        # The recurrent part has this activation whatever the others have
        elu = dense_layers()
        return Agent(
            *(observation_spec(self.observations), self.action_spec(), size),
            encoder=partial(Encoder, symlog=False, image=partial(StridedEncoder, **image)),
            decoder=partial(Decoder, symlog=False, normal=True, image=partial(TransposedDecoder, **image)),
            layers=elu,
            core=partial(PlainGRU, layers=elu),
            latent=GaussianLatent,
            prior_layers=1,
            reward=partial(NormalHead, layers=layers["reward_layers"], kind=kind),
            continuation=partial(ContinueHead, layers=layers["pcont_layers"], kind=kind)
            if c["pcont"]
            else AlwaysContinue,
            value=partial(NormalHead, layers=layers["value_layers"], kind=kind),
            actor=partial(
                *(Actor,),
                layers=layers["actor_layers"],
                kind=kind,
                continuous=partial(TanhNormal, init_std=c["action_init_std"]),
            ),
        )

    def learner(self, kind: Callable[..., SeparateLearner], agent: Agent, **options: Any) -> SeparateLearner:
        c = self.settings
        adam = self.config["layers"]["adam"]
        known("adam.beta1, beta2", (adam["beta1"], adam["beta2"]), ((0.9, 0.999),))
        known("clip_rewards", c["clip_rewards"], ("none", "tanh"))
        h = Hyperparameters(
            imagination_length=c["horizon"],
            horizon=self.horizon,
            discount_in_continue=c["pcont"],
            return_lambda=c["disclam"],
            entropy_scale=0.0,
            free_nats=c["free_nats"],
            dynamics_scale=self.kl_scale,
            representation_scale=self.kl_scale,
            continue_scale=c["pcont_scale"] if c["pcont"] else 0.0,
        )
        how = {
            "rates": {"model": c["model_lr"], "actor": c["actor_lr"], "value": c["value_lr"]},
            "adam_eps": adam["eps"],
            "max_norm": c["grad_clip"],
            "model_first": False,
            "gradient_mix": 1.0,
            "imagined_start": False,
            "last_start": not c["pcont"],
            "target_every": 0,
            "stored_latents": True,
            "reward_tanh": c["clip_rewards"] == "tanh",
        }
        return kind(agent, h, **how | options)

    def batch(self, agent: Agent, carried: Arrays | None = None) -> TensorDict:
        """Steps ``[B, 1 + T]``: rows start from zeros and with their own first action."""
        arrays = self.load("batch")
        assert set(np.unique(arrays["discount"])) <= {0.0, 1.0}
        false = np.zeros(arrays["reward"].shape, dtype=bool)
        flags = {"is_first": false, "is_last": arrays["discount"] == 0, "is_terminal": arrays["discount"] == 0}
        return steps(agent, arrays | flags, ["image"], None)

    def dreamt(self, learner: SeparateLearner, t: Mapping[str, Tensor], behaviour: str) -> tuple[Tensor, Tensor]:
        prior = noise_for(learner.agent.rssm.latent, self.parameters(t, "imag"), t["imag/stoch"])
        if not self.discrete:
            return prior, t["imag/action_eps"]
        return prior, uniform_for(t["imag/actor/logits"].softmax(-1), t["imag/action"]).unsqueeze(-1)
