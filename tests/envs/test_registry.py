"""Wrong names are answered at once, without torch, with the nearest right one or the way to get what is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dreamer_torchrl.envs import UnknownEnvironment, check_env, make_env, registry

RIGHT = [
    ("gym", {"id": "CartPole-v1"}),
    ("gym", {"id": "ALE/Pong-v5"}),
    ("gym", {"id": "dreamer_torchrl/GridReach-v0"}),
    ("gym", {"id": "dreamer_torchrl.envs.tasks:dreamer_torchrl/Memory-v0"}),
    ("atari", {"game": "ms_pacman"}),
    ("atari", {"game": "james_bond", "actions": "needed"}),
    ("custom", {"factory": "dreamer_torchrl.envs.tasks:Memory"}),
]

WRONG = [
    ("gim", {}, r"'gim': did you mean 'gym'"),
    ("gym", {}, r"'gym' needs an option 'id'"),
    ("gym", {"id": "CartPol-v1"}, r"Unknown environment id 'CartPol-v1': did you mean 'CartPole-v1'\?"),
    ("gym", {"id": "CartPole"}, r"did you mean 'CartPole-v1'"),
    ("gym", {"id": "LunarLander-v2"}, r"did you mean 'LunarLander-v3'"),
    ("gym", {"id": "GridReach-v0"}, r"did you mean 'dreamer_torchrl/GridReach-v0'"),
    ("gym", {"id": "no_such_module:X-v0"}, r"module 'no_such_module', which was not found"),
    ("atari", {"game": "pog"}, r"Unknown Atari game 'pog': did you mean 'pong'"),
    ("atari", {"game": "combat"}, r"Unknown Atari game 'combat'"),
    ("atari", {"game": "pong", "actions": "some"}, r"'some': it must be 'all' or 'needed'"),
    ("atari", {"game": "pong", "frame_skip": 0}, r"frame_skip is 0: it must be at least 1"),
    ("custom", {"factory": "somewhere"}, r"of the form 'package.module:function'"),
    ("custom", {"factory": "no_such_module:make"}, r"module 'no_such_module', which was not found"),
    ("custom", {"factory": "dreamer_torchrl.envs.tasks:Memry"}, r"no 'Memry': did you mean 'Memory'"),
]


@pytest.mark.parametrize(("family", "options", "message"), WRONG)
def test_wrong_names_are_answered(family: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownEnvironment, match=message):
        check_env(family, options)
    if family == "atari" or (options and "actions" not in options):
        with pytest.raises(UnknownEnvironment, match=message):
            make_env(family, options)


def test_right_names_pass_and_bring_no_torch() -> None:
    """Also not a factory's own import of it: its file is read, not run."""
    check_env(*RIGHT[3])  # which imports the module that it names
    program = (
        "import sys; from dreamer_torchrl.envs import check_env;"
        f"[check_env(family, options) for family, options in {[*RIGHT[:3], *RIGHT[4:]]}];"
        "check_env('custom', {'factory': 'tests.collectors.troubles:walk'}); print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    outcome = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert outcome.stdout.split()[-1:] == ["False"], outcome.stderr


@pytest.mark.parametrize(("family", "options"), [("dmc", {"task": "walker_walk"}), ("gym", {"id": "Ant-v5"})])
def test_a_missing_extra_is_named(family: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "find_spec", lambda name: None if name in ("dm_control", "mujoco") else find_spec(name)
    )
    with pytest.raises(UnknownEnvironment, match=r"mujoco: pip install 'dreamer_torchrl\[dmc\]'"):
        check_env(family, options)
