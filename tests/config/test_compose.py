"""Overrides become settings: every file composes, later ones win, and a run goes on as the run that it was."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamer_torchrl import Hyperparameters, build_agent
from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.checks import ConfigError, as_plain, leaves
from dreamer_torchrl.config.compose import load, read_saved, saved_settings
from dreamer_torchrl.config.overrides import GROUPS, choices
from dreamer_torchrl.config.schema import EnvironmentSettings, Settings
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.envs.registry import atari_games

CONFIGS = Path(__file__).parents[2] / "configs"
FACTORY = "env.factory=dreamer_torchrl.envs.tasks:Memory"
OWN = "env=custom env.factory=tests.training.training_toys:Faulty"


def chosen(group: str, name: str) -> list[str]:
    """The overrides for one choice, alone; skip the test where what it needs is not installed."""
    if "dmc_" in f"{name} {(CONFIGS / group / f'{name}.yaml').read_text()}" and find_spec("dm_control") is None:
        pytest.skip("dm_control is not installed")
    if (group, name) == ("collector", "ray") and find_spec("ray") is None:
        pytest.skip("ray is not installed")
    more = {("env", "custom"): [FACTORY], ("env", "none"): ["offline=PATH"]}
    return [f"{group}={name}", *more.get((group, name), [])]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in choices(group)])
def test_every_file_composes(group: str, name: str) -> None:
    settings = load(chosen(group, name)).settings
    if group == "size":
        assert settings.size == Size.named(name)
    if (CONFIGS / "experiment" / f"{name}.yaml").is_file() and group == "env":
        assert settings == load(chosen("experiment", name)).settings  # the experiment follows the environment


@pytest.mark.parametrize("game", ["pong", atari_games()[-1]])
def test_atari_games_by_name(game: str) -> None:
    env = load([f"env={game}"]).settings.env
    assert (env.family, env.options["game"], env.options["size"], env.frames_per_step) == ("atari", game, 96, 4)
    settings = load([f"env={game}", "experiment=atari100k"]).settings
    assert settings.env.options | {"game": game, "size": 64, "sticky": False} == settings.env.options
    assert settings.env.num_envs == 1


def test_python_and_the_file_have_the_same_defaults() -> None:
    """Each setting, and the arguments of what can be made without settings."""
    here = load(["env=gym"]).settings
    env = EnvironmentSettings(family="gym", options=here.env.options)
    assert here == Settings(run_dir="", env=env, size=Size.named("nano"))
    assert here.learner == Hyperparameters()
    replay, agent = (signature(maker).parameters for maker in (Replay, build_agent))
    assert all(replay[name].default == getattr(here.replay, name) for name in ("batch", "length"))
    assert replay["context"].default == here.learner.context
    assert all(agent[name].default == getattr(here, name) for name in ("unimix", "actor_unimix"))


def test_nothing_asked_for_is_cartpole_with_the_numbers_of_every_environment() -> None:
    assert (
        load([]).settings
        == load(["env=cartpole", "experiment=laptop"]).settings
        == load(["experiment=laptop"]).settings
    )


LAPTOP = {"size", "total_steps", "train_ratio", "env", "eval"}


@pytest.mark.parametrize("name", [name for name in choices("env") if "dmc" not in name or find_spec("dm_control")])
def test_one_set_of_numbers_is_for_every_environment(name: str) -> None:
    """An environment changes its own options, size, number of environments, action repeat, train ratio and steps."""
    chosen = {"custom": ["env.factory=tests.training.training_toys:Faulty"], "none": ["offline=PATH"]}.get(name, [])
    plain, here = (
        vars(load([f"env={one}", "experiment=laptop", *more]).settings) for one, more in (("gym", []), (name, chosen))
    )
    assert {key for key in plain if plain[key] != here[key]} <= LAPTOP | ({"offline"} if name == "none" else set())


def test_official_is_official() -> None:
    settings = load(["experiment=official"]).settings
    assert settings.learner == Hyperparameters.official()
    assert settings.learner.learning_rate == 4e-5
    assert (settings.replay.batch, settings.replay.length, settings.replay.capacity) == (16, 64, 5_000_000)
    assert (settings.train_ratio, settings.updates_per_step, settings.env.num_envs) == (32, 1 / 32, 16)
    assert (settings.size, settings.dtype) == (Size.named("size200m"), "bfloat16")
    assert (settings.unimix, settings.actor_unimix) == (0.01, 0)


OVERRIDES: list[tuple[str, str, Any]] = [
    ("seed=3", "seed", 3),
    ("++seed=3", "seed", 3),
    ("seed=1 seed=2", "seed", 2),
    ("total_steps=1e6", "total_steps", 1_000_000),
    ("threads=2 threads=null", "threads", None),
    ("learner.betas=[0.5,0.9]", "learner.betas", [0.5, 0.9]),
    ("learner.clip=inf", "learner.clip", float("inf")),
    ("seed=7 eval.episodes=${seed}", "eval.episodes", 7),
    ("wandb.name='first,second'", "wandb.name", "first,second"),
    ("wandb.name=2024", "wandb.name", "2024"),
    ("learner._target_=tests.training.training_toys.Faulty learner.x=1", "learner_part.x", 1),
    ("agent.encoder._target_=tests.training.training_toys.Faulty agent.encoder.x=1", "agent.encoder.x", 1),
    ("experiment=official experiment=laptop", "total_steps", load(["experiment=null"]).settings.total_steps),
    ("env=pendulum env=cartpole", "env.options.id", "CartPole-v1"),
    ("env=lunarlander env.arguments.gravity=-5", "env.options.arguments.gravity", -5),
    (f"{OWN} +env.arguments.deep.x=[1]", "env.options.arguments.deep.x", [1]),
    (f"{OWN} env.arguments={{x:1,y:two}}", "env.options.arguments.y", "two"),
    ("env=lunarlander eval.arguments.gravity=-5", "eval.arguments.gravity", -5),
    ("run_dir=runs/${seed}", "run_dir", "runs/0"),
    ("logger=wandb logger=null", "wandb.mode", "disabled"),
    ("run_dir=~/x", "run_dir", str(Path.home() / "x")),
    ("run_dir=it's,a(b)=[c]{d}", "run_dir", "it's,a(b)=[c]{d}"),
    ("run_dir='quoted'", "run_dir", "quoted"),
]


@pytest.mark.parametrize(("overrides", "key", "value"), OVERRIDES, ids=[one for one, _, _ in OVERRIDES])
def test_overrides(overrides: str, key: str, value: Any) -> None:
    found = leaves(as_plain(load(overrides.split()).settings))[key]
    assert found == value
    assert type(found) is type(value) or isinstance(value, int | float)


def test_the_same_settings_come_back_from_the_saved_file(tmp_path: Path) -> None:
    """With all that YAML could mistake: a name that is a number, tiny and endless numbers, null, an empty group."""
    run = tmp_path / "my runs, (first)"
    words = [f"run_dir={run}", *"env=gym wandb.name=007 learner.clip=inf learner.eps=1e-30 env.id=Acrobot-v1".split()]
    configuration = load([*words, "wandb.entity='null'", "total_steps=1e7", "env.arguments.render_mode=null"])
    configuration.save(run)
    assert saved_settings(run) == configuration.settings
    assert sorted(file.name for file in run.iterdir()) == ["config.yaml", "overrides.json"]
    assert load([f"run_dir={run}"]).settings == configuration.settings


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("started") / "run"
    words = [f"run_dir={folder}", "env=pong", "experiment=laptop", "dtype=bfloat16", "seed=3", "size=nano"]
    load([*words, "replay.batch=2"]).save(folder)
    return folder


@pytest.fixture
def run(started: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(started, tmp_path / "run"))


@pytest.mark.parametrize("overrides", ["", "env=pong experiment=laptop seed=3 size=nano", "replay.batch=2.0"])
def test_a_run_goes_on(started: Path, overrides: str) -> None:
    assert load([*overrides.split(), f"run_dir={started}"]).settings == saved_settings(started)


def test_a_run_is_found_by_the_last_word_and_through_other_settings(started: Path) -> None:
    assert load(["run_dir=elsewhere", f"run_dir={started.parent}/r${{wandb.name}}", "wandb.name=un"]).settings.seed == 3
    assert load([f"run_dir={started}", "run_dir=elsewhere"]).settings.seed == 0


def test_a_run_from_before_the_collector_was_a_section_goes_on(run: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    record = json.loads((run / "overrides.json").read_text())
    values["collector"] = "async"
    saved = {name: value for name, value in record["saved"].items() if not name.startswith("collector.")}
    record |= {"saved": saved | {"collector": "async"}, "overrides": [*record["overrides"], "collector=async"]}
    (run / "config.yaml").write_text(yaml.safe_dump(values, explicit_end=True))
    (run / "overrides.json").write_text(json.dumps(record))
    assert saved_settings(run).collector.kind == load([f"run_dir={run}"]).settings.collector.kind == "async"
    chosen = load([f"run_dir={run}", "collector=multi_sync", "collector.sync_every=3"]).settings.collector
    assert (chosen.kind, chosen.sync_every, chosen.address) == ("multi_sync", 3, None)


def test_what_may_change_is_changed_and_saved(run: Path) -> None:
    before = leaves(as_plain(saved_settings(run)))
    load([f"run_dir={run}", "total_steps=999", "eval.every=5", "logger=tensorboard", "env.step_timeout=9"]).save(run)
    again = load([f"run_dir={run}", "total_steps=1000"])
    changed = {key for key, value in leaves(as_plain(again.settings)).items() if before[key] != value}
    assert changed == {"total_steps", "eval.every", "log.tensorboard", "env.step_timeout"}
    assert (again.settings.total_steps, again.settings.eval.every) == (1000, 5)
    assert [one for one in again.overrides if "total_steps" in one] == ["total_steps=1000"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("seed=4", "seed=3, and now seed=4"),
        ("size=size1m", "size.belief=256, and now size.belief=512"),
        ("env.frame_skip=2", "env.frame_skip=4, and now env.frame_skip=2"),
        ("dtype=float32", "dtype=bfloat16, and now dtype=float32"),
    ],
)
def test_what_would_make_it_another_run_is_refused(started: Path, word: str, told: str) -> None:
    before = (started / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="leave that out to continue the run, or give another run_dir") as refused:
        load([f"run_dir={started}", word])
    assert f"{started} is a run with {told} is asked for" in str(refused.value)
    assert (started / "config.yaml").read_text() == before


def test_new_defaults_leave_a_run_as_it_was(run: Path) -> None:
    """Another version has other numbers, more of them and fewer; the run was made with its own."""
    values = read_saved(run)
    values["learner"] |= {"horizon": 99.0, "gone": 1}
    del values["unimix"], values["learner"]["_target_"], values["env"]["frame_skip"]
    (run / "config.yaml").write_text(yaml.safe_dump(values, explicit_end=True))
    record = json.loads((run / "overrides.json").read_text()) | {"saved": leaves(values)}
    (run / "overrides.json").write_text(json.dumps(record))
    settings = load([f"run_dir={run}", "total_steps=999"]).settings
    assert (settings.learner.horizon, settings.unimix, settings.seed) == (99, 0.01, 3)
    assert settings.env.options["frame_skip"] == settings.env.frames_per_step == 4
    with pytest.raises(ConfigError, match=r"learner\.horizon=99\.0, and now learner\.horizon=333"):
        load([f"run_dir={run}", "learner.horizon=333"])
    with pytest.raises(ConfigError, match=r"env\.frame_skip=nothing, and now env\.frame_skip=2"):
        load([f"run_dir={run}", "env.frame_skip=2"])


def test_an_edited_configuration_is_refused_or_applied(run: Path) -> None:
    """By the name of the setting; what may change on the command line may change by hand."""
    values = read_saved(run)
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(values | {"total_steps": 9, "run_dir": "/moved"}, explicit_end=True))
    again = load([f"run_dir={run}"])
    assert (again.settings.total_steps, again.notes) == (9, (f"{file} was edited: total_steps=9.",))
    again.save(run)
    assert load([f"run_dir={run}"]).notes == ()
    for changed, told in (
        ({"seed": 99}, "seed=99, but the run was made with seed=3"),
        ({"learner": values["learner"] | {"horizon": 9}}, "learner.horizon=9, but the run was made with "),
        ({"env": values["env"] | {"x": 1}}, "env.x=1, but the run was made with env.x=nothing"),
    ):
        file.write_text(yaml.safe_dump(values | changed, explicit_end=True))
        for use in (lambda: load([f"run_dir={run}"]), lambda: saved_settings(run)):
            with pytest.raises(ConfigError, match=re.escape(f"{file} was edited: {told}")):
                use()


def test_a_run_on_a_cpu_stays_there(run: Path) -> None:
    """Its evaluations draw the same numbers then; a run on a GPU takes what this machine has."""
    values = read_saved(run)
    for device, expected in (("cpu", "cpu"), ("cuda:1", "auto"), ("auto", "auto")):
        (run / "config.yaml").write_text(yaml.safe_dump(values | {"device": device}, explicit_end=True))
        assert saved_settings(run).device == expected


def test_a_half_written_configuration_is_told(run: Path) -> None:
    whole = (run / "config.yaml").read_text()
    cuts = [whole[:length] for length in (*range(0, len(whole) - 4, 97), len(whole) - 5)]
    for text in (*cuts, "- 1\n...\n", "seed: 1\n...\n", "env: 3\nrun_dir: x\n...\n", "env: {\n...\n", "\0\n...\n"):
        (run / "config.yaml").write_text(text)
        for use in (lambda: load([f"run_dir={run}"]), lambda: saved_settings(run)):
            with pytest.raises(ConfigError, match=r"config\.yaml is damaged: put it back"):
                use()


@pytest.mark.parametrize("text", [None, "", "[1]", "{}", '["seed', "\xff"])
def test_damaged_words_are_told(run: Path, text: str | None) -> None:
    file = run / "overrides.json"
    file.unlink() if text is None else file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"overrides\.json is missing or damaged"):
        load([f"run_dir={run}"])


def test_checkpoints_without_a_configuration_are_not_trained_over(run: Path) -> None:
    (run / "checkpoints" / "000000000040").mkdir(parents=True)
    assert load([f"run_dir={run}"]).settings.seed == 3
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"has checkpoints but no config\.yaml"):
        load([f"run_dir={run}"])
    with pytest.raises(ConfigError, match=r"is no run: there is no config\.yaml in it"):
        saved_settings(run)
