"""What a collector yields as steps, and what of the episodes in them is needed to go on after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import Composite

from dreamer_torchrl.collectors.stream_envs import StreamState
from dreamer_torchrl.keys import ENDLESS, LATENTS, STREAM

Action = dict[NestedKey, np.ndarray]
LONGEST = 50_000  # actions of an episode that are kept; a longer one cannot be repeated


class Episode(NamedTuple):
    stream: int
    total_reward: float
    length: int


def steps_of(batch: TensorDictBase) -> TensorDictBase:
    """The root part of what a collector yields from `StreamEnvs` (or several `StreamEnv`): steps of any batch shape.

    Where the environment failed, the step before a first one ends the episode (``done`` without ``terminated``).
    """
    steps = batch.exclude("next", "collector", "env_index", ENDLESS, "previous_action")
    return steps.set("done", batch["done"] | batch["next", "is_init"])


class Episodes:
    """The ``postproc`` of a collector: gives `steps_of` its batches and follows the episode of each stream in them.

    `commit` takes note of the last batch, once its steps are stored, and gives the episodes that ended in it by
    themselves; `states` then bring the streams back to the steps that follow. ``action_spec`` is that of one.

    Example:
        >>> from torchrl.collectors import Collector
        >>> from torchrl.envs import GymEnv
        >>> from dreamer_torchrl.collectors.stream_env import StreamEnv
        >>> from dreamer_torchrl.collectors.stream_envs import StreamEnvs
        >>> envs = StreamEnvs([lambda: StreamEnv(GymEnv("CartPole-v1"), entropy=[0])] * 2)
        >>> episodes = Episodes(2, envs.full_action_spec_unbatched)
        >>> steps = next(iter(Collector(envs, frames_per_batch=200, postproc=episodes)))
        >>> finished = episodes.commit()
        >>> len(finished) == int(steps["done"].sum()), len(episodes.states)
        (True, 2)
    """

    def __init__(self, streams: int, action_spec: Composite, longest: int = LONGEST):
        self.longest = longest
        self._no_actions = action_spec.zero((0,)).cpu()  # [0]
        self._number = [0] * streams  # of the present episodes
        none = {"episode": 0, "actions": None, "step": None}
        self.load_state_dict({"streams": [none] * streams, "total_reward": [0.0] * streams, "length": [0] * streams})

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        self._batch = batch.exclude("collector", "env_index").contiguous()
        return steps_of(self._batch)

    def commit(self) -> list[Episode]:
        batch, self._batch, finished = self._batch, None, []
        keys = (STREAM, "is_init", "done", "reward", ("next", "is_init"), ("next", ENDLESS, "episode"))
        keys_of_actions = self._no_actions.keys(True, True)
        actions = {key: batch[key].flatten(0, batch.ndim - 1).cpu().numpy() for key in keys_of_actions}
        rows = zip(*(batch[key].flatten().tolist() for key in keys), strict=True)
        for row, (stream, first, done, reward, first_follows, number) in enumerate(rows):
            self.total_reward[stream] = reward if first else self.total_reward[stream] + reward
            self.length[stream] = 0 if first else self.length[stream] + 1
            if done:
                finished.append(Episode(stream, self.total_reward[stream], self.length[stream]))
            if first_follows:
                self._actions[stream].clear()
            elif self.length[stream] < self.longest:
                self._actions[stream].append({key: values[row].copy() for key, values in actions.items()})
            self._number[stream], self._last[stream] = number, (batch, row)
        return finished

    @property
    def states(self) -> list[StreamState]:
        return [self._state(stream) for stream in range(len(self.length))]

    def _state(self, stream: int) -> StreamState:
        if self._last[stream] is None:
            return self._loaded[stream]
        batch, row = self._last[stream]
        place = np.unravel_index(row, batch.shape)
        step = batch["next"][place].exclude(STREAM, ENDLESS)
        step.update(batch.select(*LATENTS, strict=False)[place])
        kept = self._actions[stream]
        # The length is that of the last step: so many actions, and the one that was taken there.
        whole = len(kept) == (0 if step["is_init"] else self.length[stream] + 1)
        return StreamState(self._number[stream], self._stacked(kept) if whole else None, step.clone())

    def _stacked(self, rows: list[Action]) -> TensorDictBase:
        """The actions of an episode, ``[t]``."""
        stacked = {}
        for key, none in self._no_actions.items(True, True):
            array = np.array([row[key] for row in rows], none.numpy().dtype)
            stacked[key] = torch.from_numpy(array.reshape(-1, *none.shape[1:]))
        return TensorDict(stacked, [len(rows)])

    def state_dict(self) -> dict[str, Any]:
        def plain(values: TensorDictBase | None) -> dict[str, Any] | None:
            return None if values is None else values.to_dict(retain_none=False)

        streams = [{"episode": s.episode, "actions": plain(s.actions), "step": plain(s.step)} for s in self.states]
        return {"streams": streams, "total_reward": [*self.total_reward], "length": [*self.length]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; `states` are then those."""

        def read(values: Mapping[str, Any] | None, batch_dims: int) -> TensorDictBase | None:
            return None if values is None else TensorDict(dict(values)).auto_batch_size_(batch_dims)

        streams, self.total_reward, self.length = state["streams"], [*state["total_reward"]], [*state["length"]]
        self._loaded = [StreamState(s["episode"], read(s["actions"], 1), read(s["step"], 0)) for s in streams]
        self._last: list[tuple[TensorDictBase, int] | None] = [None] * len(self.length)  # a batch, and the place in it
        self._batch: TensorDictBase | None = None  # the one that is not committed yet
        held = [self._no_actions if stream.actions is None else stream.actions for stream in self._loaded]
        rows = ([step.items(True, True) for step in actions.unbind(0)] for actions in held)
        self._actions: list[list[Action]] = [[{key: x.numpy() for key, x in row} for row in each] for each in rows]
