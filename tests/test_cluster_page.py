"""What docs/cluster.md shows: arguments of torchrun and sbatch, Hydra's settings, and the script that queues again."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from dreamer_torchrl.config import sweep
from dreamer_torchrl.config.compose import load
from tests.test_docs import DOCS, blocks
from tests.training.training_examples import words

PAGE = DOCS / "cluster.md"
TEXT = [line for _, text in blocks(PAGE, "text") for line in text.splitlines()]
ONE, SEVERAL = (text for _, text in blocks(PAGE, "bash"))
TORCHRUN = [line for line in TEXT if line.startswith("torchrun ")]
SWEEPS = [line.partition(" -m ")[2].partition(" -m ")[2] for line in TEXT if line.startswith("python ")]


def test_torchrun_has_these_options() -> None:
    """And the training that it starts has these settings."""
    started = re.search(r"^srun (torchrun .*?) &$", SEVERAL.replace("\\\n", ""), re.MULTILINE)[1]
    for line in (*TORCHRUN, started.replace('"$@"', "run_dir=runs/one").replace("$SLURM_NNODES", "2")):
        options = get_args_parser().parse_args(shlex.split(line)[1:])
        assert (options.module, options.training_script) == (True, "dreamer_torchrl.train")
        assert load(options.training_script_args).settings.run_dir.startswith("runs/")
    assert (options.nnodes, options.nproc_per_node, options.rdzv_backend) == ("2", "8", "c10d")
    assert options.rdzv_endpoint == "$first:29500" and len(TORCHRUN) == 1


def test_a_sweep_is_of_ten_runs_and_has_a_launcher() -> None:
    found = [sweep.check(shlex.split(line)) for line in SWEEPS]
    assert [(str(folder), len(members)) for folder, members in found] == [("runs/sweep", 10)] * 4
    launchers = {re.search(r"hydra/launcher=(\w+)", line)[1] for line in SWEEPS}
    assert launchers == {"submitit_slurm", "submitit_local", "joblib", "ray"}


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_slurm_is_asked_for_what_the_page_says(tmp_path: Path) -> None:
    """The launcher writes a script and gives it to sbatch, which here keeps it and refuses."""
    program(tmp_path, "srun", "exit 1")
    program(tmp_path, "sbatch", f'cp "$1" {tmp_path}/script; echo no such partition >&2; exit 1')
    (line,) = (line for line in SWEEPS if "submitit_slurm" in line)
    command = [sys.executable, "-m", "dreamer_torchrl.train", "-m", *shlex.split(line)]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    outcome = subprocess.run(command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True)
    assert outcome.returncode == 1 and "no such partition" in outcome.stderr
    asked = set((tmp_path / "script").read_text().splitlines())
    wanted = ["partition=gpu", "gpus-per-node=1", "cpus-per-task=8", "mem=32GB", "time=1440", "signal=USR2@120"]
    assert asked >= {f"#SBATCH --{one}" for one in [*wanted, "array=0-9%10"]}


def test_scripts_ask_for_what_sbatch_has() -> None:
    known = "gres gpus-per-node nodes ntasks-per-node cpus-per-task mem time requeue open-mode signal".split()
    for text in (ONE, SEVERAL):
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        asked = re.findall(r"^#SBATCH --([\w-]+)(=\S+)?$", text, re.MULTILINE)
        assert len(asked) == text.count("#SBATCH") and {name for name, _ in asked} <= set(known)
        assert {("requeue", ""), ("open-mode", "=append"), ("signal", "=B:USR1@120")} <= set(asked)


@pytest.mark.slow
def test_the_script_saves_and_queues_again_before_the_time_limit(tmp_path: Path) -> None:
    """With the signal of `--signal=B:USR1@120`; the next start goes on, and a finished run is not queued."""
    program(tmp_path, "scontrol", f'echo "$@" >> {tmp_path}/queue')
    program(tmp_path, "python", f'exec {sys.executable} "$@"')
    program(tmp_path, "train.sh", ONE.removeprefix("#!/bin/bash\n"))
    settings = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}

    def start(steps: str) -> subprocess.Popen[str]:
        line = [tmp_path / "train.sh", *words(Path("run"), "env=cartpole", f"total_steps={steps}", "eval.every=0")]
        return subprocess.Popen(line, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True)

    process, deadline = start("1e6"), time.monotonic() + 300
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=300)
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
    saved = int(re.findall(r"Stopped and saved at step ([\d,]+)", told)[0].replace(",", ""))
    process = start(str(saved + 20))
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f"Resumed at step {saved:,}" in told and "Finished" in told
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
