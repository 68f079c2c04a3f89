"""sheeprl's DreamerV1 and DreamerV2 learners at their official sizes for DeepMind Control, for `sheeprl_peer.py`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import hydra
import torch
from lightning.fabric import Fabric
from torch import Tensor

OFFICIAL = {
    "dreamer_v1": [],  # sheeprl's own defaults are the official numbers
    "dreamer_v2": [
        "algo.world_model.recurrent_model.recurrent_state_size=200",
        "algo.world_model.transition_model.hidden_size=200",
        "algo.world_model.representation_model.hidden_size=200",
    ],
}


def family_update(algorithm: str, data: dict[str, Tensor], settings: Any, space: Any) -> tuple[Callable[[], None], int]:
    """One update from a batch ``[T, B]``, with the copy of the target critic where it is due, and the parameters."""
    program = import_module(f"sheeprl.algos.{algorithm}.{algorithm}")
    build_agent = import_module(f"sheeprl.algos.{algorithm}.agent").build_agent
    torch.distributions.Distribution.set_default_validate_args(settings.distribution.validate_args)
    fabric = Fabric(accelerator="cpu", devices=1, precision=settings.fabric.precision)
    actions = [data["actions"].shape[-1]]
    *networks, _player = build_agent(fabric, actions, True, settings, space)
    parts = settings.algo.world_model, settings.algo.actor, settings.algo.critic
    build = getattr(program, "build_optimizer", optimizer_of)  # DreamerV2's decays weights before a step
    pairs = zip(parts, networks[:3], strict=True)
    optimizers = fabric.setup_optimizers(*(build(part.optimizer, network.parameters()) for part, network in pairs))
    count = 0

    def update() -> None:
        nonlocal count
        if len(networks) > 3 and count % settings.algo.critic.per_rank_target_network_update_freq == 0:
            networks[3].load_state_dict(networks[2].state_dict())
        count += 1
        more = [actions] if algorithm == "dreamer_v2" else []
        program.train(fabric, *networks, *optimizers, dict(data), None, settings, *more)

    trained = [parameter for network in networks[:3] for parameter in network.parameters()]
    return update, sum(parameter.numel() for parameter in trained)


def optimizer_of(settings: Any, parameters: Any) -> torch.optim.Optimizer:
    return hydra.utils.instantiate(settings, params=parameters, _convert_="all")
