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
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu() -> ModuleType:
    return import_module("gpu")


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
    """All kinds of parts, from another folder than the checkout, where nothing is but torch, TorchRL and their own."""
    absent = ("PIL", "ale_py", "av", "gymnasium", "hydra", "matplotlib", "omegaconf", "pydantic", "wandb", "yaml")
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
    timed = ["eager-proprio_size1m-float32", "acting", "replay", "profile"]  # no training, where Hydra is not there
    assert list(parts) == ["imports", "verify-proprio_cont", "exactness", *timed]
    assert {part["status"] for part in parts.values()} == {"ok"}
    assert str(ROOT) not in parts["imports"]["printed"][-1]  # from the folder of links, not from where it is installed
    assert parts["exactness"]["record"]["captured"]["wrong"] == []
    (duel,) = parts["eager-proprio_size1m-float32"]["record"]["workloads"]
    assert len(duel["results"]) == 2 and duel["ratio"] > 0
    assert f"ratio {duel['ratio']:.3f}" in outcome.stdout
    assert all(row["send_ms"] > 0 for row in parts["acting"]["record"]["policy"])
    assert [row["storage"] for row in parts["replay"]["record"]["replay"]] == ["cpu"]
    assert {row["part"] for row in parts["profile"]["record"]["launches"]} == {"update", "acting"}


def on_a_gpu(**options: Any) -> Namespace:
    """Options of a whole run."""
    whole = {"device": "cuda", "warm_up": 300.0, "recording": ["proprio_cont"], "quick": False}
    whole |= {"workload": ["proprio_size1m", "vision_size1m"], "dtype": ["bfloat16", "float32"]}
    return Namespace(**whole | options)


def test_our_default_against_their_graph_comes_first(gpu: ModuleType, tmp_path: Path) -> None:
    """In every workload and precision before any other mode; all are what `learner.py` understands."""
    parts = gpu.learners(tmp_path, on_a_gpu())
    assert len(parts) == len({part.name for part in parts}) == 12
    learner = import_module("learner")
    seen = []
    for part in parts:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(each) for each in part.arguments])
            asked = learner._arguments()
        seen.append((asked.compile, asked.peer_mode, part.nice > 0))
        assert part.name.endswith(f"-{asked.workload[0]}-{asked.dtype}") and asked.json == part.record
    assert seen == 4 * [(True, "graph", False)] + 4 * [(False, "graph", False)] + 4 * [(True, "full", True)]


def test_a_training_is_among_the_parts_where_it_can_run(gpu: ModuleType, tmp_path: Path) -> None:
    parts = {part.name: part for part in gpu.others(tmp_path, on_a_gpu())}
    assert list(parts) == ["acting", "replay", "profile", "training"]
    assert {"device=cuda", "dtype=bfloat16"} <= set(parts["training"].arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hydra", None)
        assert len(gpu.others(tmp_path, on_a_gpu())) == 3


def run(
    gpu: ModuleType, tmp_path: Path, programs: dict[str, str], limit: float, warm_up: float, compiled: str = ""
) -> dict[str, Any]:
    """Run parts made of a few words of Python, and a check beside their warm-up."""
    gate = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from gate import Gate; gate = Gate({{!r}})\n"
    options = Namespace(name="toy", output=tmp_path / "toy.json", device="cpu", seconds=60.0, warm_up=warm_up)
    options.workload, options.dtype = [], []

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
        patch.setattr(gpu, "others", lambda folder, options: [])
        checks = [gpu.Part("compiled", ["-c", compiled], warm_up, folder)] if compiled else []
        patch.setattr(gpu, "compiled_checks", lambda folder, options: checks)
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


def test_a_check_beside_the_warm_up_is_over_before_anything_is_timed(gpu: ModuleType, tmp_path: Path) -> None:
    """It begins with the learners and ends with their warm-up, done or not."""
    learner = {"timed": "import time; time.sleep(1); warm = time.time(); gate.wait(); print(warm, time.time())"}
    for seconds, ended in ((1.5, "ok"), (60.0, "stopped after")):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        compiled = f"import time; print(time.time(), flush=True); time.sleep({seconds}); print(time.time())"
        parts = run(gpu, folder, learner, limit=10.0, warm_up=3.0, compiled=compiled)
        assert list(parts) == ["compiled", "timed"]
        assert parts["compiled"]["status"].startswith(ended) and parts["timed"]["status"] == "ok"
        times = [float(number) for number in parts["compiled"]["printed"]]
        warm, timed = (float(number) for number in parts["timed"]["printed"][-1].split())
        assert times[0] < warm < timed and times[-1] < timed


def test_exactness_keeps_finished_cases(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is written after each case; before each, Dynamo is reset."""
    exactness, file = import_module("exactness"), tmp_path / "exactness.json"
    there: list[list[str]] = []
    resets: list[int] = []

    def recorded(recording: Any, device: Any, asked: bool) -> Any:
        assert asked
        there.append(list(json.loads(file.read_text())) if file.exists() else [])
        assert len(resets) == len(there)
        yield exactness.Row(f"loss of {recording.case}", 0.0, 0.0, 1.0)

    def captured(device: Any, asked: bool) -> Any:
        yield from recorded(Namespace(case="captured"), device, asked)
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(exactness, "recorded", recorded)
    monkeypatch.setattr(exactness, "captured", captured)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    arguments = [str(ROOT / "tests" / "golden"), "--device", "cpu", "--compile", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["exactness.py", *arguments])
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False), pytest.raises(RuntimeError, match="on purpose"):
        exactness.main()
    assert there == [[], ["proprio_cont"], ["proprio_cont", "vision_disc"]]
    assert list(json.loads(file.read_text())) == there[-1]
