"""An agent's networks as the losses of DreamerV3, compiled where that is worth it."""

import copy
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.modules.rollout import ImagineRollout, ObserveSequence
from dreamer_torchrl.modules.tensordict_module import TensorModule
from dreamer_torchrl.objectives.actor_loss import ActorLoss
from dreamer_torchrl.objectives.common import DreamerLoss
from dreamer_torchrl.objectives.returns import ReturnNormalizer
from dreamer_torchrl.objectives.value import ValueLoss
from dreamer_torchrl.objectives.world_model import SCALES, WorldModelLoss


def make_losses(agent: Agent, h: Hyperparameters, compile: bool = False, priorities: bool = False) -> DreamerLoss:
    """The three losses over an agent's networks; with ``compile``, these and one step of each loop are fused."""

    def same(*names: str) -> dict[str, Any]:
        return {name: getattr(h, name) for name in names}

    networks = [agent.encoder, agent.decoder, agent.actor, agent.reward, agent.continuation, agent.value]
    observe, imagine = ObserveSequence(agent.rssm), ImagineRollout(agent.rssm, agent.actor, h.imagination_length)
    if compile:
        observe.step, imagine.step = torch.compile(observe.step), torch.compile(imagine.step)
        networks = [copy.copy(network) for network in networks]  # of the same parameters; acting stays uncompiled
        for network in networks:
            network.compile()
    encoder, decoder, actor, reward, continuation, value = networks
    reward = reward.tensordict_module(out_keys=("reward_logits", "predicted_reward"))
    continuation, value = continuation.tensordict_module(), value.tensordict_module()
    world_model_loss = WorldModelLoss(
        TensorModule(encoder, encoder.in_keys, ["encoded_latents"]),
        observe.tensordict_module(),
        decoder.tensordict_module(),
        reward,
        continuation,
        agent.spaces,
        agent.action_space,
        agent.rssm.latent,
        **same("context", "free_nats", "horizon", "discount_in_continue", "reward_grad"),
        scales={term: getattr(h, f"{term}_scale") for term in SCALES},
        priorities=priorities,
    )
    value_loss = ValueLoss(
        value,
        **same("slow_scale", "horizon"),
        return_lambda=h.replay_lambda,
        replay_grad=h.replay_value_grad,
        scale=h.value_scale,
        replay_scale=h.replay_value_scale,
    )
    actor_loss = ActorLoss(
        imagine.tensordict_module(),
        actor.probabilistic_module(),
        reward,
        continuation,
        value,
        slow_value=value_loss.slow_value() if h.slow_target else None,
        **same("horizon", "discount_in_continue", "return_lambda", "entropy_scale"),
        scale=h.actor_scale,
        normalizer=ReturnNormalizer(h.return_percentiles, h.return_rate, h.return_limit),
    )
    return DreamerLoss(world_model_loss, actor_loss, value_loss).to(next(agent.parameters()).device)


def can_compile(device: torch.device) -> bool:
    """Whether to compile by default: on a GPU, with Triton and the C compiler and headers that it needs."""
    compilers = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return device.type == "cuda" and find_spec("triton") is not None and compilers and headers
