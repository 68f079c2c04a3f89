"""The kernels are built once, whole, or not at all with a reason; without them everything works, only slower."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torchrl.data import Bounded, Composite, Unbounded

from dreamer_torchrl import Learner, Size, build_agent
from dreamer_torchrl.kernels import compiling as build
from dreamer_torchrl.kernels import status
from dreamer_torchrl.kernels.structures import KERNELS
from dreamer_torchrl.learners.learner import example_batch
from tests.kernels.compilers import a_compiler, needs_compiler

SMALL = {"kernels.c": b'#include "number.h"\nint number(void) { return NUMBER; }\n', "number.h": b"#define NUMBER 42\n"}
real_compiler = a_compiler()
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test asks anew, and so do the tests after this file."""
    monkeypatch.delenv("CC", raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    build.library.cache_clear(), build.why_not.cache_clear()


def script(path: Path, text: str) -> str:
    """A program of the shell."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def counting(tmp_path: Path) -> tuple[str, Path]:
    """A compiler that writes down each call, and where."""
    log = tmp_path / "calls"
    log.touch()
    return script(tmp_path / "counting", f'echo call >> {log}\nexec {real_compiler} "$@"'), log


def calls(log: Path) -> int:
    return len(log.read_text().splitlines())


def number(path: Path) -> int:
    return ctypes.CDLL(str(path)).number()


# The kernels themselves


@pytest.mark.slow
def test_the_kernels_are_built_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the shipped sources, without a warning, and found there the next time although there is no compiler."""
    log = tmp_path / "warnings"
    compiler = script(tmp_path / "strict", f'exec {real_compiler} -Wall "$@" 2> {log}')
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for dtype in build.FLAGS:
        assert build.available(dtype)
        assert log.read_text() == ""
        assert all(hasattr(build.library(dtype), name) for name in KERNELS)
    one, other = (tmp_path / "cache/dreamer_torchrl").iterdir()
    assert one.suffix == other.suffix == ".so"
    script(tmp_path / "other", "exit 1")
    os.utime(tmp_path / "other", ns=(os.stat(compiler).st_atime_ns, os.stat(compiler).st_mtime_ns))
    shutil.move(tmp_path / "other", compiler)  # the same compiler, as far as one can see
    forget()
    assert build.available(torch.float32)


# Once for each version and machine


def test_the_fingerprint_sees_sources_compiler_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = script(tmp_path / "compiler", "exit 0")
    same, twin = (script(tmp_path / "twin", "exit 0") for _ in range(2))
    prints = [build.fingerprint(sources, compiler) for sources in (SMALL, SMALL | {"a.h": b""}, {"kernels.c": b""})]
    prints.append(build.fingerprint(SMALL | {"number.h": SMALL["kernels.c"]}, compiler))
    prints.append(build.fingerprint(SMALL, twin))
    os.utime(compiler, ns=(0, 0))  # an update of the compiler
    prints.append(build.fingerprint(SMALL, compiler))
    assert len(set(prints)) == len(prints)
    before = build.fingerprint(SMALL, twin)
    assert before == build.fingerprint(dict(reversed(SMALL.items())), same)
    monkeypatch.setattr(build, "_processor", str)  # several machines may share a home
    assert build.fingerprint(SMALL, twin) != before


def test_two_that_build_at_the_same_time(tmp_path: Path) -> None:
    """Each has a whole library, and one is left for the next."""
    log = tmp_path / "calls"
    compiler = script(tmp_path / "slow", f'echo call >> {log}\nsleep 0.5\nexec {real_compiler} "$@"')
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: build.build(SMALL, compiler, tmp_path / "cache"), range(2)))
    assert calls(log) == 2  # they did meet
    (left,) = (tmp_path / "cache").iterdir()
    assert both == [left, left] and number(left) == 42


# Where it cannot be built


def reason(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert not build.available(torch.float32)
    with pytest.raises(build.NotBuilt):
        build.library(torch.float32)
    return build.why_not(torch.float32)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    told = reason(monkeypatch, tmp_path)
    assert told == "There is no C compiler (cc, gcc, clang): install gcc or clang, or set CC."


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("echo kernels.c:3: cannot do this >&2; exit 1", "did not build the kernels: kernels.c:3: cannot do this"),
        ("exit 3", "did not build the kernels: it exited with 3"),
        ("exit 0", "did not build the kernels: it exited with 0 and left no library"),  # says that all is well
        ('for last; do [ "$before" = -o ] && echo no library > "$last"; before=$last; done', "cannot be loaded"),
    ],
    ids=["message", "silent", "no_library", "no_elf"],
)
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, told: str) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "compiler", does))
    found = reason(monkeypatch, tmp_path / "cache")
    assert re.search(told, found), found
    assert str(tmp_path / "compiler") in found


# Where it cannot be kept


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = build.build(SMALL, real_compiler, tmp_path / "file/cache")
    assert number(path) == 42
    assert tmp_path not in path.parents
    shutil.rmtree(path.parent)


def test_where_the_cache_is_and_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container under a number that no list of users knows."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "dreamer_torchrl"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache/dreamer_torchrl"
    monkeypatch.setattr(Path, "home", homeless)
    path = build.build(SMALL, real_compiler, build.cache_folder())
    assert number(path) == 42
    shutil.rmtree(path.parent)


# Without kernels


WITHOUT = """
import json, pickle, sys, torch
from dreamer_torchrl.learners.learner import Learner
from tests.kernels.test_compiling import small_learner, three_updates
from dreamer_torchrl.kernels import attach
learner = small_learner(None)
outcome = {"native": learner.optimizer.defaults["native"], "losses": three_updates(learner)}
attach(learner.agent, True)  # as in an agent that comes from a machine with kernels
with torch.no_grad():
    outcome["value"] = learner.agent.value(torch.ones(2, learner.agent.rssm.feature_size))[1].tolist()
try:
    Learner(learner.agent, native=True)
except ValueError as error:
    outcome["refused"] = str(error)
print(json.dumps(outcome))
"""


def small_learner(native: bool | None) -> Learner:
    """The same at each call."""
    torch.manual_seed(0)
    size = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)
    agent = build_agent(Composite(observation=Unbounded((3,))), Bounded(-1, 1, (2,)), size)
    return Learner(agent, native=native)


def three_updates(learner: Learner) -> list[dict[str, float]]:
    """All metrics."""
    batch = example_batch(learner.agent, batch=3, length=5)
    return [{key: value.item() for key, value in learner.update(batch)[0].items()} for _ in range(3)]


@pytest.mark.slow
def test_a_machine_without_a_compiler(tmp_path: Path) -> None:
    """A learner does the same there; only one who insists on kernels is told why there are none."""
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert re.match(r"native=true\W.*There is no C compiler \(cc, gcc, clang\): install", outcome["refused"])
    assert outcome["native"] is False
    assert len(outcome["value"]) == 2
    learner = small_learner(None)
    assert learner.optimizer.defaults["native"] is True
    for here, there in zip(three_updates(learner), outcome["losses"], strict=True):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-5)


def test_kernels_are_not_asked_for_on_other_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever says native=False pays for no build."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    three_updates(small_learner(False))
    assert build.library.cache_info().misses == build.why_not.cache_info().misses == 0


def test_status_says_whether_kernels_run_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, for the console and the doctor."""
    assert status(native=False) == "Kernels in C do not run: native=false."
    assert status(device="cuda") == "Kernels in C do not run: they are for a CPU, and this is cuda."
    monkeypatch.setenv("CC", "no_such_compiler")
    assert status().startswith("Kernels in C do not run, updates are slower: There is no C compiler (no_such_compiler)")
    with pytest.warns(UserWarning, match=r"do not run in torch.float64.*no C compiler \(no_such_compiler\)"):
        assert not build.available(torch.float64)
    monkeypatch.delenv("CC")
    forget()
    assert status() == "Kernels in C run."
