"""The replay benchmark as its user runs it, at a small size."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_table_and_record(tmp_path: Path) -> None:
    file = tmp_path / "replay.json"
    options = ["--workload", "proprio_size1m", "--steps", "12000", "--draws", "3", "--json", str(file)]
    command = [sys.executable, "benchmarks/replay.py", *options]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    record = json.loads(file.read_text())
    assert [row["fill"] for row in record["replay"]] == [10_000, 12_000]
    assert all(0 < row["sample_ms"] <= row["sample_ms_max"] for row in record["replay"])
    assert record["replay"][0]["bytes_per_step"] == 24 * 4 + 6 * 4 + 4 + 3 + 4 * 512 + 32
    assert "12,000" in outcome.stdout
