"""A worker runs one environment, in this process or in one of its own; each fault there is one kind of exception."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase

from dreamer_torchrl.collectors.stream_env import NotFinite, StreamEnv

Maker = Callable[[], StreamEnv]
Arrays = list[tuple[NestedKey, np.ndarray]]

STARTING = 60.0  # seconds to start a process and make its environment, beside those of its first step


class EnvironmentFailed(RuntimeError):
    """An environment raised, hung or died."""


class LocalWorker:
    """Runs a `StreamEnv` in this process. After a method raised `EnvironmentFailed`, only `close` may be called."""

    def __init__(self, make: Maker):
        self.env = _guarded(make)
        self.end_episode, self.seed = self.env.end_episode, self.env.seed

    def send(self, action: TensorDictBase) -> None:
        self.action = action

    def receive(self) -> TensorDictBase:
        return _guarded(self.env.advance, self.action)

    def resume(self, episode: int, actions: TensorDictBase) -> TensorDictBase:
        """Start episode number ``episode`` and repeat its actions ``[t]``."""
        return _guarded(self.env.resume, episode, actions.unbind(0))

    def release(self) -> None:
        """Nothing: `close` does it at once."""

    def close(self) -> None:
        _guarded(self.env.close)


class ProcessWorker:
    """`LocalWorker` in a process of its own, which is given up when it does not answer within ``timeout`` seconds."""

    def __init__(self, make: Maker, timeout: float):
        self.timeout, self.starting, self.released = timeout, STARTING, 0.0
        self.connection, there = _context().Pipe()
        # Not a daemon, which could not start processes itself. It ends with its parent all the same: see _serve.
        self.process = _context().Process(target=_serve, args=(there, make))
        self.process.start()
        there.close()
        atexit.register(self.close)  # before the handler of multiprocessing, which joins what is left over

    def send(self, action: TensorDictBase) -> None:
        self._send("advance", _arrays(action))

    def resume(self, episode: int, actions: TensorDictBase) -> TensorDictBase:
        self._send("resume", episode)
        step = self.receive()
        for action in actions.unbind(0):
            self.send(action)
            step = self.receive()
        return step

    def end_episode(self, following: int) -> None:
        self._send("end_episode", following)

    def seed(self, entropy: Iterable[int]) -> None:
        self._send("seed", tuple(entropy))

    def release(self) -> None:
        """Let the process end, without waiting for it."""
        self.released = self.released or time.monotonic()
        self.connection.close()

    def close(self) -> None:
        """End the process, by force if it does not end by itself within a second."""
        atexit.unregister(self.close)
        self.release()
        self.process.join(max(0.0, self.released + 1.0 - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            with suppress(ProcessLookupError):  # what the environment has started keeps it from being joined
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()

    def _send(self, method: str, argument: Any) -> None:
        with suppress(OSError):  # if it died, `receive` finds out and says how
            self.connection.send((method, argument))

    def receive(self) -> TensorDictBase:
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


Worker = LocalWorker | ProcessWorker


def _context() -> multiprocessing.context.BaseContext:
    """Processes start from a server that has imported torch and gymnasium; a fork with threads would be unsafe."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "dreamer_torchrl.envs.gym"])
    return context


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call foreign code; whatever it raises becomes `EnvironmentFailed`, with the place in it."""
    try:
        return function(*arguments)
    except NotFinite as error:  # the place would be in this package
        raise EnvironmentFailed(str(error)) from error
    except (Exception, SystemExit) as error:
        where = traceback.format_exc(limit=-2).strip()
        raise EnvironmentFailed(f"{type(error).__name__}: {error}\n{where}") from error


def _serve(connection: Connection, make: Maker) -> None:
    """The main function of a process with one environment; it ends when the other end is closed."""
    os.setpgid(0, 0)  # with what the environment may start, so that all of it can be ended
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # the parent decides what follows
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        try:
            env = _guarded(make)
            with closing(env):
                while True:
                    method, argument = connection.recv()
                    step = _guarded(getattr(env, method), _tensors(argument) if method == "advance" else argument)
                    if step is not None:
                        connection.send(("step", _arrays(step)))
        except EnvironmentFailed as failure:
            connection.send(("failed", str(failure)))


def _end_with_parent() -> None:
    """End even while the environment hangs."""
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)


def _arrays(tensordict: TensorDictBase) -> Arrays:
    return [(key, value.numpy()) for key, value in tensordict.items(True, True)]


def _tensors(arrays: Arrays) -> TensorDict:
    return TensorDict({key: torch.from_numpy(array) for key, array in arrays})
