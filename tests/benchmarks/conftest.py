"""Programs of the benchmarks, imported as they import one another and run in this process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy_peer.py")

Program = Callable[..., str]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: Callable[[int], None]
) -> Program:
    """Call ``main`` of a program with arguments; returns what it printed. The number of threads is restored."""

    def run(name: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *map(str, arguments)])
        import_module(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def toy_python(tmp_path: Path) -> Path:
    """An interpreter that runs the toy in place of sheeprl."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(TOY))} 99\n")
    python.chmod(0o755)
    return python
