"""An agent's networks as losses, compiled where that is worth it."""

from __future__ import annotations

import copy
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.modules.heads import Cost
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence
from dreamer_torchrl.modules.tensordict_module import TensorModule
from dreamer_torchrl.objectives.actor_loss import ActorLoss
from dreamer_torchrl.objectives.returns import ReturnNormalizer
from dreamer_torchrl.objectives.value import ValueLoss
from dreamer_torchrl.objectives.world_model import SCALES, WorldModelLoss


class Networks(NamedTuple):
    """An agent's networks as TensorDictModules."""

    encoder: TensorDictModule
    observe: TensorDictModule
    decoder: TensorDictModule
    imagine: TensorDictModule
    actor: ProbabilisticTensorDictSequential
    reward: TensorDictModule
    continuation: TensorDictModule
    value: TensorDictModule

    @classmethod
    def of(cls, agent: Agent, imagination_length: int, compile: bool = False, gradient: bool = False) -> Networks:
        """With ``compile``, they and one step of each loop are fused; with ``gradient``, that of imagination flows."""
        networks = [agent.encoder, agent.decoder, agent.actor, agent.reward, agent.continuation, agent.value]
        observe = ObserveSequence(agent.rssm)
        imagine = ImagineRollout(agent.rssm, agent.actor, imagination_length, gradient, agent.mask)
        if compile:
            observe.step, imagine.step = torch.compile(observe.step), torch.compile(imagine.step)
            networks = [copy.copy(network) for network in networks]  # of the same parameters; acting stays uncompiled
            for network in networks:
                network.compile()
        encoder, decoder, actor, reward, continuation, value = networks
        return cls(
            TensorModule(encoder, encoder.in_keys, ["encoded_latents"]),
            observe.tensordict_module(),
            decoder.tensordict_module(),
            imagine.tensordict_module(),
            actor.probabilistic_module(),
            reward.tensordict_module(out_keys=("reward_logits", "predicted_reward")),
            continuation.tensordict_module(),
            value.tensordict_module(),
        )


def make_behaviour(networks: Networks, h: Hyperparameters, cost: Cost) -> tuple[ActorLoss, ValueLoss]:
    """The losses of DreamerV3's actor and critic, whose head has this ``cost``."""
    value_loss = ValueLoss(
        networks.value,
        **same(h, "slow_scale", "horizon"),
        return_lambda=h.replay_lambda,
        replay_grad=h.replay_value_grad,
        scale=h.value_scale,
        replay_scale=h.replay_value_scale,
        cost=cost,
    )
    actor_loss = ActorLoss(
        *(networks.imagine, networks.actor, networks.reward, networks.continuation, networks.value),
        slow_value=value_loss.slow_value() if h.slow_target else None,
        **same(h, "horizon", "discount_in_continue", "return_lambda", "entropy_scale"),
        scale=h.actor_scale,
        normalizer=ReturnNormalizer(h.return_percentiles, h.return_rate, h.return_limit),
    )
    return actor_loss, value_loss


def make_world_model_loss(agent: Agent, networks: Networks, h: Hyperparameters, **options: Any) -> WorldModelLoss:
    """The loss of the world model; ``options`` are its arguments that are no `Hyperparameters`."""
    return WorldModelLoss(
        *(networks.encoder, networks.observe, networks.decoder, networks.reward, networks.continuation),
        *(agent.spaces, agent.action_space, agent.rssm.latent),
        **same(h, "context", "free_nats", "horizon", "discount_in_continue", "reward_grad"),
        scales={term: getattr(h, f"{term}_scale") for term in SCALES},
        reward_cost=agent.reward.cost,
        reconstruction_cost=agent.decoder.cost,
        **options,
    )


def same(h: Hyperparameters, *names: str) -> dict[str, Any]:
    return {name: getattr(h, name) for name in names}


def can_compile(device: torch.device) -> bool:
    """Whether to compile by default: on a GPU, with Triton and the C compiler and headers that it needs."""
    compilers = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return device.type == "cuda" and find_spec("triton") is not None and compilers and headers
