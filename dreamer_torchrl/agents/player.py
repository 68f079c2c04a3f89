"""Act without TorchRL, with observations and actions of Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import reduce
from math import prod
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from tensordict import NestedKey
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.actor import ActionSpace
from dreamer_torchrl.modules.spaces import Continuous, Discrete, Image, Space, key_name, scale_action

Bounds = Mapping[NestedKey, tuple[ArrayLike, ArrayLike]]
"""Lowest and highest value of each action key that the agent sees as -1 to 1."""


class Latents(NamedTuple):
    """Latents and previous action of N environments; each step returns new ones."""

    belief: Tensor  # [N, D]
    state: Tensor  # [N, S, K]
    previous_action: Tensor  # [N, A]

    def forget(self, ended: ArrayLike) -> Latents:
        """Reset the environments whose episode ended, given as N booleans."""
        ended, count = np.asarray(ended), len(self.belief)
        if ended.dtype != bool or ended.shape != (count,):
            found = f"{ended.dtype} of shape {list(ended.shape)}"
            raise ValueError(f"ended is {found}: give one boolean for each of the {count} environments.")
        keep = torch.from_numpy(~ended).to(self.belief)  # [N]
        return Latents(*[value * keep.reshape(-1, *[1] * (value.ndim - 1)) for value in self])


class Player:
    """An agent with Gymnasium's observations: an array or dict of arrays, of one environment or of N with N in front.

    Actions come in the same way: an int for a `Discrete` space, an array for any other, a dict for a dict of spaces.

    The agent's weights and device are shared. With ``sample`` latents and actions are drawn, rather than modes taken.
    ``bounds`` are those of the environment, for actions that the agent sees as -1 to 1, such as ``StreamEnv.bounds``.

    Example:
        >>> import gymnasium
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> player = Player(build_agent(Composite(observation=Unbounded((4,))), OneHot(2), "nano"))
        >>> env = gymnasium.make("CartPole-v1")
        >>> observation, state = env.reset()[0], None
        >>> for _ in range(3):
        ...     action, state = player.act(observation, state)
        ...     observation = env.step(action)[0]
        >>> action in (0, 1), state.belief.shape
        (True, torch.Size([1, 256]))
    """

    def __init__(self, agent: Agent, sample: bool = False, seed: int = 0, bounds: Bounds | None = None):
        device = next(agent.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        self.policy = Policy(agent.encoder, agent.rssm, agent.actor, generator)
        self.exploration = ExplorationType.RANDOM if sample else ExplorationType.DETERMINISTIC
        self.actions = ActionForm(agent.action_space, bounds, device)

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    @torch.no_grad()
    def act(self, observation: Any, state: Latents | None = None) -> tuple[Any, Latents]:
        """Choose an action; returns it and the new state. Without a state an episode starts."""
        self._follow_agent()
        seen, batch = self._read(observation)
        count = prod(batch)
        belief, classes, action = self._remembered(state, count)
        never = torch.zeros(count, 1, dtype=torch.bool, device=self.device)  # whatever started has zeros for latents
        with set_exploration_type(self.exploration):
            mask = seen.pop(MASK, None)
            encoded = self.policy.encoder(*seen.values())
            belief, classes, flat = self.policy.step(encoded, action, never, belief, classes, mask=mask)
        action = _written(self.actions(flat), one=not batch)
        return action, Latents(belief.float(), classes.float(), flat)

    def _follow_agent(self) -> None:
        """Move generator and bounds to where the weights are; the draws there are seeded by one from here."""
        generator, device = self.policy.generator, self.device
        if generator.device != device:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            self.policy.generator = torch.Generator(device).manual_seed(seed)
            self.actions.to(device)

    def _read(self, observation: Any) -> tuple[dict[NestedKey, Tensor], tuple[int, ...]]:
        """What encoder and actor take, ``[N, ...]`` each, and ``(N,)``, or ``()`` for one environment."""
        spaces, seen, batches = self.policy.encoder.spaces | self.policy.actor.space.masks, {}, {}
        for key, space in spaces.items():
            own = as_indices(space)
            array = read_array(key, own, _find(observation, key, spaces))
            batches[key] = batch = array.shape[: array.ndim - len(own.shape)]
            value = torch.from_numpy(array).to(self.device)
            value = encodable(space, value if batch else value.unsqueeze(0))
            seen[key] = value.to(space.dtype) if isinstance(space, Continuous) else value
        if len(set(batches.values())) > 1:
            counts = ", ".join(f"{key_name(key)} of {shape[0] if shape else 'one'}" for key, shape in batches.items())
            raise ValueError(f"The observations are of different numbers of environments, {counts}: give all of them.")
        return seen, batch

    def _remembered(self, state: Latents | None, count: int) -> Latents:
        if state is None:
            action = torch.zeros(count, self.policy.actor.space.size, device=self.device)
            return Latents(*self.policy.rssm.initial(count), action)
        remedy = "give what act returned before, or None to start."
        if not isinstance(state, Latents):
            raise TypeError(f"The state is a {type(state).__name__}: {remedy}")
        if len(state.belief) != count:
            sizes = f"{len(state.belief)} environments and the observation of {count}"
            raise ValueError(f"The state is of {sizes}: {remedy}")
        return Latents(*[value.to(self.device) for value in state])


class ActionForm:
    """Turn flat actions into what the environment takes: class indices, and floats within its bounds."""

    def __init__(self, space: ActionSpace, bounds: Bounds | None = None, device: torch.device | None = None):
        self.indexed = copy(space)
        self.indexed.spaces = self.spaces = {key: as_indices(part) for key, part in space.spaces.items()}
        self.bounds = {key: self._checked(key, *ends) for key, ends in (bounds or {}).items()}
        self.to(device)

    def __call__(self, flat: Tensor) -> dict[NestedKey, Tensor]:
        """Take ``[..., A]``; floats without bounds in the agent's own spec stay as they are."""
        actions = self.indexed.restore(flat)
        for key, space in self.spaces.items():
            if key in self.bounds:
                actions[key] = scale_action(actions[key], *self.bounds[key])
            elif isinstance(space, Continuous) and space.bounds:
                actions[key] = actions[key].clamp(-1, 1)
        return actions

    def to(self, device: torch.device | None) -> None:
        self.bounds = {key: (low.to(device), high.to(device)) for key, (low, high) in self.bounds.items()}

    def _checked(self, key: NestedKey, low: ArrayLike, high: ArrayLike) -> tuple[Tensor, Tensor]:
        space = self.spaces.get(key)
        if not isinstance(space, Continuous):
            floats = [key_name(key) for key, space in self.spaces.items() if isinstance(space, Continuous)]
            raise ValueError(f"Bounds of {key!r}, which is no action of floats: there are {floats or 'none'}.")
        ends = [torch.as_tensor(end, dtype=space.dtype).expand(space.shape).clone() for end in (low, high)]
        if not (ends[1] - ends[0]).isfinite().all():
            name = key_name(key)
            raise ValueError(f"Action {name!r} has bounds {low} to {high}, which are not finite: leave them out.")
        return tuple(ends)


def as_indices(space: Space) -> Space:
    """The same space with class indices, as Gymnasium has them, where TorchRL has one-hot vectors."""
    if not isinstance(space, Discrete) or not space.one_hot:
        return space
    rows, variables = space.shape[:-1], len(space.classes) // prod(space.shape[:-1])
    return replace(space, shape=(*rows, variables) if variables > 1 else rows, dtype=torch.int64, one_hot=False)


def encodable(space: Space, value: Tensor) -> Tensor:
    """Turn a batch ``[N, ...]`` of what Gymnasium gives into what the encoder takes."""
    own = as_indices(space)
    return value if own is space else own.flatten(value).reshape(-1, *space.shape)


def read_array(key: NestedKey, space: Space, value: Any) -> np.ndarray:
    """One observation as an array of its own, after a check of shape, kind and classes."""
    # A copy: torch takes no read-only or mirrored array.
    array, shape = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value), space.shape
    if array.ndim == 0 and shape == (1,):  # TorchRL sees a single number as a vector of one
        array = array.reshape(1)
    name, kinds, wanted = f"Observation {key_name(key)!r}", "fiub", "numbers"
    if isinstance(space, Image):
        kinds, wanted = "u", "uint8 from 0 to 255"
    elif isinstance(space, Discrete):
        tops = sorted({space.low + count - 1 for count in space.classes})
        kinds, wanted = "iub", f"whole numbers from {space.low} to {' or '.join(map(str, tops))}"
    if array.dtype.kind not in kinds or (isinstance(space, Image) and array.dtype != np.uint8):
        raise TypeError(f"{name} is of dtype {array.dtype}: give {wanted}, as the environment does in training.")
    if array.shape not in (shape, array.shape[:1] + shape):
        training = f"{list(shape)} for one environment or {['N', *shape]} for N"
        raise ValueError(f"{name} has shape {list(array.shape)}: give it as in training, {training}.")
    if isinstance(space, Discrete):
        index = array.astype(np.int64) - space.low
        if (index < 0).any() or (index >= np.reshape(space.classes, shape)).any():
            raise ValueError(f"{name} is {array.tolist()}: give {wanted}.")
    return array


def _find(observation: Any, key: NestedKey, spaces: Mapping[NestedKey, Space]) -> Any:
    if not isinstance(observation, Mapping) and len(spaces) == 1:
        return observation
    try:
        return reduce(getitem, (key,) if isinstance(key, str) else key, observation)
    except (KeyError, TypeError, IndexError) as error:
        names = ", ".join(map(key_name, spaces))
        raise KeyError(f"Observation {key_name(key)!r} is missing: give a dict that holds {names}.") from error


def _written(actions: Mapping[NestedKey, Tensor], one: bool) -> Any:
    written: dict[str, Any] = {}
    for key, value in actions.items():
        array = (value[0] if one else value).cpu().numpy().copy()  # the memory may be that of the latents
        *folders, name = (key,) if isinstance(key, str) else key
        place = written
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = int(array) if array.ndim == 0 and array.dtype.kind in "iu" else array
    return written["action"] if list(actions) == ["action"] else written
