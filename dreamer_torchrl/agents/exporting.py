"""A policy in one file that torch alone can load; the command is ``python -m dreamer_torchrl.export``.

What the policy remembers goes in and comes out, so the caller carries it from step to step:

    files = {"policy.json": ""}
    policy = torch.export.load("policy.pt2", extra_files=files).module()
    actions, belief, state, previous_action = policy(observations, is_init, belief, state, previous_action)

``observations`` and ``actions`` are dicts of tensors ``[N, ...]``. What goes in and comes out has the names, shapes and
dtypes that ``files["policy.json"]`` lists. Where ``is_init`` ``[N, 1]`` is set the latents are forgotten, so an episode
may start with zeros. A policy that draws takes two more arguments, ``noise`` and ``action_noise``.
"""

import copy
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn
from torch.utils import _pytree
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.player import ActionForm, Bounds, Player, as_indices, encodable
from dreamer_torchrl.keys import LATENTS, MASK
from dreamer_torchrl.modules.spaces import Discrete, Image, Space, key_name

DESCRIPTION = "policy.json"  # inside the file


class ExportedPolicy(nn.Module):
    def __init__(self, agent: Agent, bounds: Bounds | None = None):
        super().__init__()
        self.policy = copy.deepcopy(agent.policy).cpu().requires_grad_(False)
        del self.policy.rssm.prior, self.policy.rssm.prior_logits  # acting imagines nothing
        self.actions = ActionForm(agent.action_space, bounds)

    def forward(
        self,
        observations: dict[str, Tensor],
        is_init: Tensor,
        belief: Tensor,
        state: Tensor,
        previous_action: Tensor,
        noise: Tensor | None = None,
        action_noise: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """One step of N environments: actions by name, belief, state and flat action."""
        encoder, mask = self.policy.encoder, observations.get(MASK)
        seen = [encodable(space, observations[key_name(key)]) for key, space in encoder.spaces.items()]
        inputs = (encoder(*seen), previous_action, is_init, belief, state, noise, action_noise, mask)
        with set_exploration_type(ExplorationType.DETERMINISTIC):  # noise that is given is used all the same
            belief, state, flat = self.policy.step(*inputs)
        actions = {key_name(key): value for key, value in self.actions(flat).items()}
        return actions, belief.float(), state.float(), flat


def export_policy(agent: Agent, path: Path | str, sample: bool = False, bounds: Bounds | None = None) -> Path:
    """Write the policy to one file, a ``.pt2``, for any number of environments at a time.

    With ``sample`` the policy draws, from noise that is given to it, rather than takes modes; ``bounds`` are those of
    the environment, for actions that the agent sees as -1 to 1.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{path} does not end in .pt2, by which torch knows such files: name it {path.stem}.pt2.")
    inputs = tuple(_example(agent, 2, sample).values())  # 2, because torch would take a 1 for a constant
    shapes = _pytree.tree_map(lambda _: {0: torch.export.Dim("N", min=1)}, inputs)
    program = torch.export.export(ExportedPolicy(agent, bounds), inputs, dynamic_shapes=shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    description = json.dumps(describe(agent, sample, bounds), indent=1)
    torch.export.save(program, path, extra_files={DESCRIPTION: description})
    return path


def describe(agent: Agent, sample: bool = False, bounds: Bounds | None = None) -> dict[str, Any]:
    """What goes into an exported policy and what comes out, by name: shape, dtype, classes or bounds."""
    form = ActionForm(agent.action_space, bounds)
    _, *example = _example(agent, 1, sample).items()  # the first are the observations
    inputs = {name: _described(value.shape[1:], value.dtype) for name, value in example}
    if sample:
        parts = agent.action_space.parts
        latent = agent.rssm.latent
        inputs["noise"]["draw"] = [[latent.noise_kind, latent.variables]]
        inputs["action_noise"]["draw"] = [["uniform" if classes else "normal", count] for count, classes in parts]
    actions = {key_name(key): _space(space) for key, space in form.spaces.items()}
    for key, (low, high) in form.bounds.items():
        actions[key_name(key)].update(low=low.tolist(), high=high.tolist())
    observations = {key_name(key): _space(as_indices(space)) for key, space in shown(agent).items()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "inputs": {"observations": observations, **inputs},
        "outputs": {"actions": actions, **{name: inputs[name] for name in LATENTS}},
        "sample": sample,
        "versions": versions | {"dreamer_torchrl": version("dreamer_torchrl")},
    }


@torch.no_grad()
def compare(agent: Agent, path: Path | str, bounds: Bounds | None = None, steps: int = 64) -> float:
    """Let agent and file, which was made with these bounds, act in two environments with random observations.

    Returns the largest difference of all that comes out, relative to the largest number where that is over 1.
    """
    files = {DESCRIPTION: ""}
    exported = torch.export.load(Path(path), extra_files=files).module()
    sample = json.loads(files[DESCRIPTION])["sample"]
    player = Player(agent, sample, bounds=bounds)
    twin, generator = (torch.Generator().manual_seed(0) for _ in range(2))  # of the player's noise, of observations
    latents, state = [_example(agent, 2)[name] for name in LATENTS], None
    found: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        seen = {key: as_indices(space).random((2,), generator) for key, space in shown(agent).items()}
        first = step % (steps // 2) == 0
        state = None if first else state
        _, state = player.act(TensorDict(seen, [2]).to_dict(), state)
        noise = _noise(agent, 2, twin) if sample else ()
        named = {key_name(key): value for key, value in seen.items()}
        actions, *latents = exported(named, torch.full((2, 1), first), *latents, *noise)
        found += zip(latents, state, strict=True)
        found += [(actions[key_name(key)], one) for key, one in player.actions(state.previous_action).items()]
    pairs = [(ours.double(), theirs.double()) for ours, theirs in found]
    distances = [(ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0) for ours, theirs in pairs]
    return torch.stack(distances).max().item()  # nan, if one is


def shown(agent: Agent) -> dict[NestedKey, Space]:
    """What the policy reads of an environment: observations and the action mask, if there is one."""
    return agent.spaces | agent.action_space.masks


def _example(agent: Agent, count: int, sample: bool = False) -> dict[str, Any]:
    """Inputs of a first step of ``count`` environments, in the order in which the policy takes them."""
    generator = torch.Generator().manual_seed(0)
    seen = {key_name(key): as_indices(space).random((count,), generator) for key, space in shown(agent).items()}
    latents = {name: torch.zeros(count, *agent.latent_spec[name].shape) for name in LATENTS}
    noise = dict(zip(("noise", "action_noise"), _noise(agent, count, generator), strict=True)) if sample else {}
    return {"observations": seen, "is_init": torch.ones(count, 1, dtype=torch.bool), **latents, **noise}


def _noise(agent: Agent, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For latents and action, in the order in which the policy draws it."""
    noise = agent.rssm.latent.noise(count, generator=generator)
    return noise, agent.action_space.noise(count, generator=generator)


def _described(shape: Sequence[int], dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    return {"shape": ["N", *shape], "dtype": str(dtype).removeprefix("torch."), **more}


def _space(space: Space) -> dict[str, Any]:
    if isinstance(space, Image):
        return _described(space.shape, torch.uint8, low=0, high=255)
    if isinstance(space, Discrete):
        return _described(space.shape, space.dtype, low=space.low, classes=list(space.classes))
    bounds = zip(("low", "high"), space.bounds[0], strict=True) if len(space.bounds) == 1 else ()
    return _described(space.shape, space.dtype, **dict(bounds))
