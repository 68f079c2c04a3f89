"""Publish an agent on a model hub and load it from there, against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.training.hub import push_to_hub
from dreamer_torchrl.training.pretrained import CARD, PRETRAINED, WEIGHTS
from tests.training.toy_hub import toy_hub
from tests.training.training_examples import trained

PROGRAM = """
import sys
import dreamer_torchrl

for source, repo in (("pretrained:cartpole", "somebody/cartpole"), (sys.argv[1], "somebody/own")):
    print(dreamer_torchrl.push_to_hub(source, repo, private=True, licence="Apache-2.0"))
    run = dreamer_torchrl.load_from_hub(repo)
    ours, theirs = run.agent.state_dict(), dreamer_torchrl.load(source).agent.state_dict()
    print(run.step, all(theirs[key].equal(value) for key, value in ours.items()))
"""


def test_an_agent_goes_to_the_hub_and_comes_back(tmp_path: Path) -> None:
    """A pretrained one and that of a run; the endpoint is read as huggingface_hub is imported, so in a new process."""
    own = trained(tmp_path / "run", "env=cartpole", "total_steps=24", "train_ratio=0", "eval.every=0")
    with toy_hub() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_secret"}
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", PROGRAM, str(own)]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *printed = done.stdout.splitlines()
    assert first.startswith(f"{hub.url}/somebody/cartpole/commit/")
    assert printed[0].endswith(" True") and printed[2] == "24 True"
    assert hub.tokens == {"Bearer hf_secret"}
    assert all("private" in (made.get("visibility"), made.get("private") and "private") for made in hub.made)
    files = hub.repos["somebody/cartpole"]
    assert files.keys() == {CARD, WEIGHTS, "README.md"}
    assert all(files[name] == (PRETRAINED / "cartpole" / name).read_bytes() for name in (CARD, WEIGHTS))
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    known, (result,) = yaml.safe_load(metadata), yaml.safe_load(metadata)["model-index"][0]["results"]
    assert (known["license"], known["library_name"]) == ("mit", "dreamer_torchrl")
    assert result["metrics"][0] == {"type": "mean_reward", "value": 500.0}
    assert 'load_from_hub("somebody/cartpole")' in text and "env=cartpole seed=1" in text
    own_page = hub.repos["somebody/own"]["README.md"].decode()
    assert "license: apache-2.0" in own_page and "not evaluated" in own_page and "model-index" not in own_page


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'dreamer_torchrl\[hub\]'"):
        push_to_hub("pretrained:cartpole", "somebody/cartpole")
