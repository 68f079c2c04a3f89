"""`gpu.sh` on the CPU: it runs from a bare checkout with little installed; a part that fails does not lose others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("gpu")


def test_a_small_run(tmp_path: Path) -> None:
    """All kinds of parts, from another folder than the checkout, where nothing is but torch, TorchRL and their own."""
    absent = ("PIL", "ale_py", "av", "gymnasium", "hydra", "matplotlib", "omegaconf", "wandb", "yaml")
    for name in absent:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')")
    words = ["trial", "--device", "cpu", "--quick", "--workload", "proprio_size1m", "--dtype", "float32"]
    words += ["--recording", "proprio_cont"]
    outcome = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), *words, "--output", "new/trial.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    parts = {part["part"]: part for part in json.loads((tmp_path / "new" / "trial.json").read_text())["parts"]}
    assert list(parts) == [
        *("imports", "verify-proprio_cont", "exactness"),
        "eager-proprio_size1m-float32",
    ]
    assert {part["status"] for part in parts.values()} == {"ok"}
    assert str(ROOT) not in parts["imports"]["printed"][-1]  # from the folder of links, not from where it is installed
    assert parts["exactness"]["record"]["captured"]["wrong"] == []
    (duel,) = parts["eager-proprio_size1m-float32"]["record"]["workloads"]
    assert len(duel["results"]) == 2 and duel["ratio"] > 0
    assert f"ratio {duel['ratio']:.3f}" in outcome.stdout


def run(gpu: ModuleType, tmp_path: Path, programs: dict[str, str], limit: float, warm_up: float) -> dict[str, Any]:
    """Run parts made of a few words of Python."""
    gate = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from gate import Gate; gate = Gate({{!r}})\n"
    options = Namespace(name="toy", output=tmp_path / "toy.json", device="cpu", seconds=60.0, warm_up=warm_up)

    def toys(folder: Path, _: Namespace) -> list[Any]:
        return [
            gpu.Part(name, ["-c", gate.format(str(folder / name)) + text], limit, folder, gpu.Gate(folder / name))
            for name, text in programs.items()
        ]

    folder = tmp_path / "parts"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "learners", toys)
        patch.setattr(gpu, "checks", lambda folder, options: [])
        outcomes = gpu.run(options, folder)
    assert json.loads(options.output.read_text())["parts"] == outcomes
    return {outcome["part"]: outcome for outcome in outcomes}


def test_parts_that_fail_cost_only_themselves(gpu: ModuleType, tmp_path: Path) -> None:
    programs = {
        "breaks": "raise ValueError('broken on purpose')",
        "hangs": "gate.wait(); import time; time.sleep(60)",
        "never_warm": "import time; time.sleep(60)",
        "works": "gate.wait(); print('fine')",
    }
    parts = run(gpu, tmp_path, programs, limit=1.0, warm_up=3.0)
    assert parts["breaks"]["status"] == "failed with code 1"
    assert parts["breaks"]["printed"][-1] == "ValueError: broken on purpose"
    assert parts["hangs"]["status"].startswith("stopped after")
    assert parts["never_warm"]["status"].startswith("not warm after")
    assert parts["works"]["status"] == "ok" and parts["works"]["printed"] == ["fine"]


def test_only_one_is_timed_at_a_time(gpu: ModuleType, tmp_path: Path) -> None:
    """Each is warm before the first is let through, and begins after the one before has ended."""
    text = "import time; warm = time.time(); gate.wait(); begin = time.time(); time.sleep(0.3)\n"
    text += "print(warm, begin, time.time())"
    parts = run(gpu, tmp_path, dict.fromkeys(("a", "b", "c"), text), limit=10.0, warm_up=30.0)
    times = [[float(number) for number in parts[name]["printed"][-1].split()] for name in "abc"]
    assert max(warm for warm, _, _ in times) <= min(begin for _, begin, _ in times)
    assert times[0][2] <= times[1][1] and times[1][2] <= times[2][1]
