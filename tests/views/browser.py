"""A real browser without a window, spoken to over a pipe: what it finds in a page, what it logs, what it asks for."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW_TO_INSTALL = "no browser is here: apt-get install chromium, or give the path of one in CHROMIUM"
PATIENCE = 60.0
"""Seconds to wait for an answer; a busy machine is slow."""


def installed() -> str | None:
    """The program; none if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    """What came of opening a page.

    Args:
        found: what the question about the page gave.
        errors: all that was logged as an error, and all that scripts raised.
        asked: addresses that were loaded, but for the page itself and what lies inside it.
    """

    found: Any
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class Browser:
    """Chromium's own protocol: JSON messages with a zero byte after each, over file descriptors 3 and 4.

    Args:
        profile: an empty folder for it.
    """

    def __init__(self, profile: Path):
        (self._theirs_in, ours_out), (ours_in, self._theirs_out) = os.pipe(), os.pipe()
        self._in, self._out, self._buffer, self._count = ours_in, ours_out, b"", 0
        self._events: list[dict[str, Any]] = []
        # Out of the way of the numbers that they get in the child.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (self._theirs_in, self._theirs_out)]

        def as_three_and_four() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        words = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
        quiet = "--disable-background-networking --disable-component-update --disable-sync --mute-audio"
        self._process = subprocess.Popen(
            [installed(), *words.split(), *quiet.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            preexec_fn=as_three_and_four,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (*ends, self._theirs_in, self._theirs_out):
            os.close(end)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.ask("Browser.close", {})
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)

    def visit(self, page: Path, width: int, height: int, scheme: str, question: str) -> Visit:
        """Open a page on a screen of this size in ``light`` or ``dark``, and evaluate a question when it is loaded."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        tab = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", {}, tab)
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", screen, tab)
        look = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.ask("Emulation.setEmulatedMedia", look, tab)
        self._events.clear()
        address = page.resolve().as_uri()
        self.ask("Page.navigate", {"url": address}, tab)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        options = {"expression": question, "awaitPromise": True, "returnByValue": True}
        answer = self.ask("Runtime.evaluate", options, tab)
        visit = Visit(answer["result"].get("value"))
        if "exceptionDetails" in answer:
            visit.errors.append(json.dumps(answer["exceptionDetails"]))
        for event in self._events:
            said = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown" or (
                event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error"
            ):
                visit.errors.append(json.dumps(said))
            elif event["method"] == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
                visit.errors.append(json.dumps(said["args"]))
            elif event["method"] == "Network.requestWillBeSent":
                url = said["request"]["url"]
                if url != address and not url.startswith("data:"):
                    visit.asked.append(url)
        self.ask("Target.closeTarget", {"targetId": target})
        return visit

    def ask(self, method: str, parameters: Mapping[str, Any], tab: str | None = None) -> dict[str, Any]:
        """Have something done, and wait for the answer; what happens meanwhile is kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": dict(parameters)} | (
            {"sessionId": tab} if tab else {}
        )
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE:g} seconds")
            got = os.read(self._in, 1 << 20)
            if not got:
                raise RuntimeError(f"the browser ended with exit code {self._process.wait()}")
            self._buffer += got
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
