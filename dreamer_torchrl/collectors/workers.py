"""Where an environment lives: in this process or in one of its own. Whatever goes wrong there is one exception here."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase

from dreamer_torchrl.collectors.stream_env import StreamEnv

Maker = Callable[[], StreamEnv]
Arrays = list[tuple[NestedKey, np.ndarray]]

STARTING = 60.0
"""Seconds that a process has to start and make its environment, beside those of its first step."""


class EnvironmentFailed(RuntimeError):
    """An environment raised, hung or died."""


class Host(Protocol):
    """Where one `StreamEnv` lives. Each method may raise `EnvironmentFailed`, after which only `close` is left."""

    def send(self, action: TensorDictBase) -> None: ...
    def receive(self) -> TensorDictBase: ...
    def resume(self, episode: int, actions: TensorDictBase) -> TensorDictBase: ...
    def end_episode(self) -> None: ...
    def close(self) -> None: ...


class Here:
    """In this process."""

    def __init__(self, make: Maker):
        self.env = _guarded(make)
        self.action: TensorDictBase | None = None

    def send(self, action: TensorDictBase) -> None:
        """Take the action; the work is done when its outcome is asked for."""
        self.action = action

    def receive(self) -> TensorDictBase:
        """The step that follows the action."""
        return _guarded(self.env.advance, self.action)

    def resume(self, episode: int, actions: TensorDictBase) -> TensorDictBase:
        """Start episode number ``episode`` and repeat its actions ``[t]``."""
        return _guarded(self.env.resume, episode, actions.unbind(0))

    def end_episode(self) -> None:
        """Let the next action start an episode."""
        self.env.end_episode()

    def close(self) -> None:
        """Close the environment."""
        _guarded(self.env.close)


class Elsewhere:
    """In a process of its own; one that does not answer in time is given up."""

    def __init__(self, make: Maker, timeout: float):
        self.timeout, self.starting = timeout, STARTING
        self.connection, there = _context().Pipe()
        self.process = _context().Process(target=_serve, args=(there, make), daemon=True)
        self.process.start()
        there.close()
        # Python would ask a process that is left over to end by SIGTERM, to which it does not listen, and wait for it.
        atexit.register(self.close)

    def send(self, action: TensorDictBase) -> None:
        """Send the action on its way."""
        self._tell("advance", _arrays(action))

    def receive(self) -> TensorDictBase:
        """Wait for the step that follows the action."""
        return self._answer()

    def resume(self, episode: int, actions: TensorDictBase) -> TensorDictBase:
        """Start episode number ``episode`` and repeat its actions ``[t]``."""
        self._tell("begin", episode)
        step = self._answer()
        # Only now, since it listens: more than a connection holds would not even leave if nobody read it.
        if len(actions):
            self._tell("repeat", len(actions), _arrays(actions))
        for _ in range(len(actions)):
            step = self._answer()
        return step

    def end_episode(self) -> None:
        """Let the next action start an episode."""
        self._tell("end_episode")

    def close(self) -> None:
        """End the process, by force if it must be."""
        atexit.unregister(self.close)
        self.connection.close()
        self.process.join(1.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _tell(self, *message: Any) -> None:
        with suppress(OSError):  # if it died, `_answer` finds out and says how
            self.connection.send(message)

    def _answer(self) -> TensorDictBase:
        seconds, self.starting = self.timeout + self.starting, 0.0
        try:
            if not self.connection.poll(seconds):
                raise EnvironmentFailed(f"its process (pid {self.process.pid}) did not answer for {seconds:.0f} s")
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1.0)
            raise EnvironmentFailed(f"its process ended with exit code {self.process.exitcode}") from None
        if kind == "failed":
            raise EnvironmentFailed(content)
        return _tensors(content)


def _context() -> multiprocessing.context.BaseContext:
    """Processes start from a server that has imported torch once; forking this process, with its threads, is unsafe."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call into foreign code; whatever it raises becomes `EnvironmentFailed`."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        where = traceback.format_exc(limit=-2).strip()
        raise EnvironmentFailed(f"{type(error).__name__}: {error}\n{where}") from error


def _serve(connection: Connection, make: Maker) -> None:
    """The life of a process with one environment; it ends when nobody listens any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these may reach all at once; the learner decides what follows
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        try:
            env = _guarded(make)
            while True:
                command, *content = connection.recv()
                if command == "advance":
                    step = _guarded(env.advance, _tensors(content[0]))
                elif command == "begin":
                    step = _guarded(env.resume, content[0], [])
                elif command == "repeat":
                    count, actions = content
                    *early, last = _tensors(actions, [count]).unbind(0)
                    for action in early:
                        _guarded(env.advance, action)
                        connection.send(("step", []))  # a sign of life: nobody wants to see it
                    step = _guarded(env.advance, last)
                else:
                    env.end_episode()
                    continue
                connection.send(("step", _arrays(step)))
        except EnvironmentFailed as failure:
            connection.send(("failed", str(failure)))


def _end_with_parent() -> None:
    """Do not stay behind, not even in an environment that hangs."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _arrays(tensordict: TensorDictBase) -> Arrays:
    return [(key, value.numpy()) for key, value in tensordict.items(True, True)]


def _tensors(arrays: Arrays, batch_size: Sequence[int] = ()) -> TensorDict:
    return TensorDict({key: torch.from_numpy(array) for key, array in arrays}, batch_size)
