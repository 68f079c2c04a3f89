"""How a W&B run begins: online where that works, else offline, and sending nothing but what it is given."""

from __future__ import annotations

import netrc
import os
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import wandb

PROBE_SECONDS = 3.0
START_SECONDS = 20.0
FINISH_SECONDS = 20.0
OLD_HOST = "api.wandb.ai"  # a key that was stored for it is valid at the new address too


@dataclass(frozen=True)
class Place:
    """Where a run appears, W&B's own defaults where nothing is said.

    Args:
        project, entity: of W&B.
        name: of the run, as people read it.
        group: of the runs that differ only in their seed.
        tags: to find it again.
    """

    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


def begin(
    mode: Literal["offline", "online"], run_dir: Path, place: Place, config: Mapping[str, Any]
) -> tuple[wandb.Run, str | None]:
    """The run, and why it is offline where it should have been online."""
    run_id = kept_id(run_dir / "wandb" / "run_id")
    if mode == "offline":
        return _begin(mode, run_dir, run_id, place, config), None
    run = _begin_online(run_dir, run_id, place, config)
    if isinstance(run, str):
        return _begin("offline", run_dir, run_id, place, config), run
    return run, None


def _begin(
    mode: Literal["offline", "online"], run_dir: Path, run_id: str, place: Place, config: Mapping[str, Any]
) -> wandb.Run:
    import wandb

    settings = wandb.Settings(
        mode=mode,
        root_dir=str(run_dir),
        run_id=run_id,
        project=place.project,
        entity=place.entity,
        run_name=place.name,
        run_group=place.group,
        run_job_type="train",
        run_tags=place.tags or None,
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


def _begin_online(run_dir: Path, run_id: str, place: Place, config: Mapping[str, Any]) -> wandb.Run | str:
    """A run that is connected to the server, or the reason why there is none."""
    import wandb

    reason = why_not_online(wandb.setup(wandb.Settings(silent=True)).settings)
    if reason is None:
        try:
            return _begin("online", run_dir, run_id, place, config)
        except Exception as error:  # of many classes, not all of them wandb's own, some with no base but this
            reason = in_words(error)
    wandb.teardown()  # its process would say that the run's id is in use
    return reason


def in_words(error: Exception) -> str:
    """An error on one line.

    Example:
        >>> in_words(ValueError("a key is missing.\\nIt must be there.")), in_words(TimeoutError())
        ('ValueError: a key is missing; It must be there', 'TimeoutError')
    """
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    return ": ".join(filter(None, (type(error).__name__, "; ".join(filter(None, lines)))))


def kept_id(path: Path) -> str:
    """The id of the run, made when it is first asked for."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


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
