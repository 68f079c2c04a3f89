"""Weights & Biases as one sink among others: real runs that never stop, slow or delay the training."""

from __future__ import annotations

import netrc
import os
import shlex
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import wandb

Record = dict[str, Any]

QUEUE_LENGTH = 10_000
PROBE_SECONDS = 3.0
START_SECONDS = 20.0
FINISH_SECONDS = 20.0
OLD_HOST = "api.wandb.ai"  # a key that was stored for it is valid at the new address too


class WandbRun:
    """Send scalars and videos to Weights & Biases from a thread of its own.

    The run's files lie in ``RUN/wandb``. Its id is kept there, so that a resumed training goes on in the same run. Sent
    are the configuration, the scalars, the videos and the host's name; no package list, code, git state, console
    output, machine statistics or error reports. Without a key or a network, an online run becomes an offline one, and
    `note` says why.

    Args:
        run_dir: the run directory.
        mode: ``disabled`` does nothing and imports nothing.
        project, entity, name: where the run appears; W&B's own defaults where they are none.
        config: the resolved configuration.
        note: prints a line.

    Example:
        >>> run = WandbRun(Path("runs/cartpole"), "disabled", config={"seed": 0})
        >>> run.write(100, {"episode/return": 21.0})
        >>> run.close()
    """

    def __init__(
        self,
        run_dir: Path,
        mode: Literal["disabled", "offline", "online"],
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = print,
    ):
        self._note = note
        self._queue: Queue[Record | None] = Queue(QUEUE_LENGTH)
        self._off = Event()
        self._worker: Thread | None = None
        self._dropped = False
        if mode == "disabled":
            return
        run = self._start(run_dir, mode, config or {}, {"project": project, "entity": entity, "run_name": name})
        if run is not None:
            self._offline, self._folder = run.settings.mode == "offline", Path(run.settings.sync_dir)
            self._worker = Thread(target=self._work, args=(run,), name="wandb-run", daemon=True)
            self._worker.start()

    def _start(
        self, run_dir: Path, mode: Literal["offline", "online"], config: Mapping[str, Any], place: Record
    ) -> wandb.Run | None:
        """Start online if that is wanted and works, else offline; none if not even that works."""
        # W&B's reports about itself hold stack traces, and when they do not arrive it prints into the progress line.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            place = place | {"root_dir": str(run_dir), "run_id": kept_id(run_dir / "wandb" / "run_id")}
            if mode == "online":
                run = begin_online(place, config)
                if not isinstance(run, str):
                    return run
                self._note(f"W&B: {run}; this run is written offline")
            return begin("offline", place, config)
        except Exception as error:
            self._give_up(error)
            return None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of a step; this takes microseconds."""
        self._put({"step": step, **values})

    def video(self, step: int, name: str, path: Path) -> None:
        """Queue an evaluation video."""
        self._put({"step": step, name: path})

    def close(self) -> None:
        """Send what waits, for a limited time; if anything stays behind, print the command that sends it later."""
        if self._worker is None:
            return
        if not self._off.is_set():
            try:
                self._queue.put(None, timeout=FINISH_SECONDS)
            except Full:
                self._off.set()
        self._worker.join(FINISH_SECONDS + 5)
        if self._offline or self._off.is_set() or self._worker.is_alive():
            self._note(f"W&B: to upload this run, use: wandb sync {shlex.quote(str(self._folder))}")
        self._worker = None

    def _put(self, record: Record) -> None:
        if self._worker is None or self._off.is_set():
            return
        try:
            self._queue.put_nowait(record)
        except Full:
            if not self._dropped:
                self._dropped = True
                self._note("warning: W&B does not keep up; records are left out there (metrics.jsonl has them all)")

    def _work(self, run: wandb.Run) -> None:
        """The only thread that talks to wandb: its calls may wait for another process or for the network."""
        try:
            while (record := self._queue.get()) is not None:
                run.log({key: loggable(value) for key, value in record.items()})
            run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on without W&B if the error is its own; any other is ours and must be seen."""
        if not is_of_wandb(error):
            raise error
        self._off.set()
        self._note(f"warning: W&B failed ({error or type(error).__name__}); training goes on without it")
        while True:  # nobody will read what still waits
            try:
                self._queue.get_nowait()
            except Empty:
                return


def begin(mode: Literal["offline", "online"], place: Mapping[str, str | None], config: Mapping[str, Any]) -> wandb.Run:
    """Start a run that sends nothing but what it is given."""
    import wandb

    settings = wandb.Settings(
        mode=mode,
        **place,
        resume="allow",
        use_dot_wandb=False,
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_save_requirements=False,
        x_disable_stats=True,
        x_disable_machine_info=True,
        init_timeout=START_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    run = wandb.init(config=dict(config), settings=settings)
    # W&B's own counter only grows; a resumed run goes back to its checkpoint.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def begin_online(place: Mapping[str, str | None], config: Mapping[str, Any]) -> wandb.Run | str:
    """A run that is connected to the server, or the reason why there is none."""
    import wandb

    reason = why_not_online(wandb.setup(wandb.Settings(silent=True)).settings)
    if reason is None:
        try:
            return begin("online", place, config)
        except Exception as error:
            if not is_of_wandb(error):
                raise
            reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    wandb.teardown()  # its process would say that the run's id is in use
    return reason


def is_of_wandb(error: Exception) -> bool:
    """Whether an error comes from wandb or from the system. Not all classes of wandb's are public or have a base."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "wandb"


def kept_id(path: Path) -> str:
    """The id of the run, made when it is first asked for."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


def loggable(value: Any) -> Any:
    """A value as W&B takes it."""
    import wandb

    return wandb.Video(str(value)) if isinstance(value, Path) else value


def why_not_online(settings: wandb.Settings) -> str | None:
    """What keeps a run from being online, in words; none if nothing does."""
    host = urlsplit(settings.base_url).netloc
    if not (settings.api_key or settings.identity_token_file or has_netrc_entry(host) or has_netrc_entry(OLD_HOST)):
        return f"there is no key for {host} (set WANDB_API_KEY or run: wandb login)"
    if not reachable(settings.base_url):
        return f"{host} cannot be reached"
    return None


def has_netrc_entry(host: str) -> bool:
    """Whether the user's netrc file knows a host."""
    named = os.environ.get("NETRC")
    paths = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    try:
        return any(netrc.netrc(path).authenticators(host) for path in paths if path.exists())
    except (netrc.NetrcParseError, OSError):
        return False


def reachable(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a server answers at all. The question runs aside: looking up a name cannot be given a time limit."""
    answers: list[bool] = []
    thread = Thread(target=ask, args=(url, seconds, answers), name="wandb-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers == [True]


def ask(url: str, seconds: float, answers: list[bool]) -> None:
    """Append whether a server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            answers.append(True)
    except urllib.error.HTTPError:
        answers.append(True)
    except urllib.error.URLError as error:  # its certificate is judged by wandb itself
        answers.append(isinstance(error.reason, ssl.SSLError))
    except OSError:
        answers.append(False)
