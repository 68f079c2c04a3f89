"""The export command: where its file goes, how far it is from the original, or what is wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from dreamer_torchrl.export import main
from tests.training.training_examples import trained_twice


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on three environments at once, with a checkpoint at step 12 and one at step 24."""
    options = ("env=pendulum", "env.num_envs=3", "train_ratio=0", "eval.every=0")
    return trained_twice(tmp_path_factory.mktemp("export") / "run", 12, 24, *options)


def test_the_command_writes_the_file_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert (run / "policy.pt2").is_file()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{run / 'policy.pt2'}, 0.")
    assert second.startswith("Largest difference to the original on random observations: ")


def test_a_file_that_differs_ends_with_an_error_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there all the same, of the checkpoint and at the place that were asked for."""
    monkeypatch.setattr("dreamer_torchrl.export.TOLERANCE", -1.0)
    output = tmp_path / "deeper" / "drawn.pt2"
    assert main([str(run), "--checkpoint", "000000000012", "--output", str(output), "--sample"]) == 1
    with zipfile.ZipFile(output) as archive:
        (description,) = (name for name in archive.namelist() if name.endswith("policy.json"))
        assert json.loads(archive.read(description))["sample"] is True


def test_another_ending_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(run), "--output", "policy.onnx"])
    assert end.value.code == 2
    assert "name it policy.pt2" in capsys.readouterr().err
