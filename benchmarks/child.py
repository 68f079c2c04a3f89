"""A learner in another process: another interpreter, other package versions, its own memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

SHEEPRL_PEER = Path(__file__).with_name("sheeprl_peer.py")
SHEEPRL_SETUP = (
    "sheeprl needs an environment of its own: python3 -m venv FOLDER; FOLDER/bin/pip install "
    f"torch=={torch.__version__.partition('+')[0]} sheeprl==0.8.4; then --peer-python FOLDER/bin/python."
)


class ChildError(RuntimeError):
    """The other process could not start, or ended early."""


def start_sheeprl(python: Path, name: str, steps: TensorDictBase, *arguments: str) -> ChildContestant:
    """Starts sheeprl's DreamerV3 of a size, or the algorithm of this name, in its own environment.

    It has the same ``steps`` and as many threads as ours.

    Example:
        start_sheeprl(Path("sheeprl/bin/python"), "size1m", steps, "--act", "50")
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.pt"
        torch.save(dict(steps.items()), file)
        which = ("--size", name.removeprefix("size").upper()) if name.startswith("size") else ("--algorithm", name)
        options = ("--steps", file, *which, "--threads", torch.get_num_threads())
        return ChildContestant([python, SHEEPRL_PEER, *options, *arguments], SHEEPRL_SETUP)


class ChildContestant:
    """A learner behind two pipes: it makes one update per line read and answers with a line of JSON.

    Its first line comes unasked, ``{"name", "parameters", "notes"}``; each answer is ``{"seconds", "peak_memory"}``,
    the latter in bytes. It ends where its input does. Use it in a ``with`` statement, or call `close`.

    Args:
        command: the program and its arguments.
        remedy: what to do if it fails, for the message of the `ChildError`.
    """

    def __init__(self, command: Sequence[str | Path], remedy: str):
        self.remedy = remedy
        self._open = ExitStack()
        # stderr goes to a file: an unread pipe could fill up and block the child.
        self._stderr = self._open.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 (closed with the child)
        try:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            self.close()
            raise ChildError(f"{command[0]} cannot be started: {error.strerror}. {remedy}") from error
        self._open.callback(self._process.communicate)
        self._open.callback(self._process.kill)
        self._peak = 0
        try:
            about = self._answer()
            self.name: str = about["name"]
            self.parameters: int = about["parameters"]
            self.notes: list[str] = about["notes"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ChildContestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self) -> float:
        try:
            print("update", file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None
        answer = self._answer()
        self._peak = max(self._peak, answer["peak_memory"])
        return answer["seconds"]

    def peak_memory(self) -> int:
        return self._peak

    def close(self) -> None:
        """End the process."""
        self._open.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            raise ChildError(
                f"The other process does not answer in JSON: {line.strip()[:200]}. {self.remedy}"
            ) from None

    def _failure(self) -> ChildError:
        code = self._process.wait()
        self._stderr.seek(0)
        last = (self._stderr.read().strip() or "without output").splitlines()[-1]
        end = f"by signal {-code}" if code < 0 else f"with code {code}"
        return ChildError(f"The other process ended {end}: {last}. {self.remedy}")
