"""Write `configuration.md` from `configs/` and the schema of the settings.

    python docs/make_configuration.py

What a setting means is written once: as the comment behind it, in the first file under `configs/` that has it.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml
from pydantic import TypeAdapter

from dreamer_torchrl.config.checks import as_word, leaves
from dreamer_torchrl.config.compose import CHANGEABLE
from dreamer_torchrl.config.overrides import choices
from dreamer_torchrl.config.schema import LEARNER, Settings
from dreamer_torchrl.learners import hyperparameters

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "configuration.md"

ENTRY = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")
SECTIONS = ("agent", "representation", "exploration", "collector", "replay", "learner", "eval", "checkpoint", "log")
SECTIONS += ("wandb",)
KINDS = {"boolean": "true, false", "integer": "integer", "number": "number", "string": "text", "object": "entries"}
PYTHON_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}

START = """\
# Configuration

Made by `python docs/make_configuration.py` from `configs/` and the types in `dreamer_torchrl/config/schema.py`: change
those.

## How to set something

`python -m dreamer_torchrl.train` takes Hydra overrides, all of the form `key=value`:

- Groups choose a file: `env`, `size`, `algorithm`, `core`, `latent`, `exploration`, `collector`,
  `experiment` and `logger`.
  `python -m dreamer_torchrl.train list` prints the choices of each.
- Everything else is one value: `seed=1`, an inner one with dots as `learner.horizon=100`, a list as
  `learner.betas=[0.9,0.99]`, nothing as `null`.
- Later values override earlier ones: `config.yaml`, then the groups (`experiment` last), then the overrides in their
  order. The file of an environment also sets what a training of it needs on a laptop
  ([presets](presets.md)).
- Where no experiment is named, an official one with the name of the environment is taken (`env=atari`,
  `env=atari100k`, `env=dmc_proprio`, `env=dmc_vision`), else `experiment=laptop`. An Atari game is an environment
  (`env=pong` is `env=atari env.game=pong`).
- New entries are possible in `env.arguments` and `eval.arguments`, which go to the environment as they are
  (`env=gym env.id=CarRacing-v3 env.arguments.continuous=false`), and beside the `_target_` of a part of your own
  ([parts](parts.md)).
- In a shell, overrides with spaces or brackets need quotes: `'learner.betas=[0.9, 0.99]'`.

`--help` prints `config.yaml`; `--cfg` behind other overrides prints the configuration they make and stops. Overrides
are checked before torch is loaded: a mistake ends in exit code 2 and names the nearest right name
([messages](faults.md#invalid-overrides)).

`run_dir=RUN` continues the run that is in that folder, with its settings. What may change then:
{changeable}.
Anything else would make it another run and is refused, on the command line and in `RUN/config.yaml`.

`--multirun` (or `-m`) is Hydra's: `--multirun seed=0,1,2 env=cartpole,pendulum` trains a run for each combination,
each a process with a folder of its own. Hydra's launchers and sweepers work as in any Hydra application, for instance
`hydra/launcher=joblib` or `hydra/launcher=submitit_slurm` after `pip install hydra-joblib-launcher` or
`hydra-submitit-launcher`. The same command with the `run_dir` that it printed continues each run and skips those that
are finished.

The defaults of `dreamer_torchrl.Hyperparameters` and of the other classes in Python are those of this page;
`Hyperparameters.official()` and `experiment=official` have the numbers of the official code.

Names that scripts may rely on: `run_dir`, `seed`, `total_steps`, `size`, `device`, `compile`, `train_ratio`,
`env.num_envs`, `eval.every`, `eval.episodes`, `wandb.mode`.

A *step* is one action of the agent in one environment; steps are counted over all environments. *Frames* are simulator
steps (Atari: four per step) and are logged, too. `train_ratio` is the number of replayed steps per step: 64
with batches of 4 x 32 is half an update per step. Updates begin once a batch is there, or after `prefill` steps.
"""


@dataclass(frozen=True)
class Entry:
    """One entry of a configuration file: where it is, what it is, and what stands behind it."""

    path: str
    default: Any
    meaning: str


def entries(file: Path) -> list[Entry]:
    """All entries of a file that are values, with the comments behind them.

    A comment that goes on in the lines below, alone in its line and further in than the keys, is joined.
    """
    values = leaves(yaml.safe_load(file.read_text()) or {})
    meanings: dict[str, str] = {}
    branch: list[tuple[int, str]] = []
    path = ""
    for line in file.read_text().splitlines():
        found = ENTRY.match(line)
        if found:
            indent = len(found["indent"])
            branch = [*(pair for pair in branch if pair[0] < indent), (indent, found["key"])]
            path = ".".join(key for _, key in branch)
            meanings[path] = (found["comment"] or "").strip()
        elif path and line.strip().startswith("#") and len(line) - len(line.lstrip()) > branch[-1][0] + 2:
            meanings[path] = f"{meanings[path]} {line.strip(' #')}".strip()
    return [Entry(key, value, meanings[key]) for key, value in values.items() if key.split(".")[0] != "defaults"]


def sections() -> dict[str, str]:
    """What stands behind the name of each section in `config.yaml`."""
    lines = (CONFIGS / "config.yaml").read_text().splitlines()
    found = [ENTRY.match(line) for line in lines]
    return {match["key"]: (match["comment"] or "").strip() for match in found if match and not match["value"].strip()}


def official_names() -> dict[str, str]:
    """Comments behind the hyperparameters: how the official code calls them."""
    text = Path(hyperparameters.__file__).read_text()
    body = next(node for node in ast.parse(text).body if getattr(node, "name", "") == "Hyperparameters").body
    lines = {node.lineno: node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    tokens = tokenize.generate_tokens(StringIO(text).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {name: comments[line] for line, name in lines.items() if line in comments}


def kinds() -> dict[str, str]:
    """What each setting can be, from the JSON schema that pydantic makes of the settings."""
    whole = TypeAdapter(Settings).json_schema()

    def inner(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "properties" in schema:
            for name, entry in schema["properties"].items():
                yield from inner(entry, f"{path}.{name}" if path else name)
        else:
            yield path, possible(schema)

    return dict(inner(whole, "")) | {
        "learner._target_": "text",
        "learner.optimizer": "entries, null",
        "learner.extra_losses": "list of entries",
    }


def possible(schema: Mapping[str, Any]) -> str:
    """A type of JSON schema with its limits, for people."""
    if "anyOf" in schema:
        first, *_ = (one for one in schema["anyOf"] if one["type"] != "null")
        return f"{possible(first)}, null"
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        return f"{schema['maxItems']} numbers" if "maxItems" in schema else "list of texts"
    least, most = schema.get("minimum"), schema.get("maximum")
    limits = [f"{least} to {most}" if most is not None else f"{least} or more"] if least is not None else []
    limits += [f"above {schema['exclusiveMinimum']}"] if "exclusiveMinimum" in schema else []
    limits += ["below 2^63"] if "exclusiveMaximum" in schema else []
    return ", ".join([KINDS[schema["type"]], *limits])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def setting(entry: Entry, allowed: Mapping[str, str]) -> list[str]:
    """A row about a setting; what is nothing by default can be nothing."""
    kind = allowed[entry.path]
    nothing = ", null" if entry.default is None and "null" not in kind else ""
    return [f"`{entry.path}`", code(entry.default), kind + nothing, entry.meaning]


def sentence(text: str) -> str:
    """A comment as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def code(value: Any) -> str:
    """A value as it is written, marked as code; a dictionary as YAML has it."""
    return f"`{value if isinstance(value, dict) else as_word(value)}`"


def overrides(values: Mapping[str, Any]) -> str:
    """Values as the overrides that would ask for them."""
    return " ".join(f"`{path}={as_word(value)}`" for path, value in leaves(values).items())


def setting_tables() -> str:
    """Everything that all runs have, section by section."""
    allowed = kinds()
    found = entries(CONFIGS / "config.yaml")
    heads = sections()
    official = official_names()
    parts = []
    for section in ("", *SECTIONS):
        inner = [entry for entry in found if entry.path.rpartition(".")[0].partition(".")[0] == section]
        head = ["setting", "default", "possible", "meaning"] + (["official name"] if section == "learner" else [])
        rows = []
        for entry in inner:
            name = entry.path.rpartition(".")[2]
            named = ["" if name in LEARNER else f"`{official.get(name, name)}`"] if section == "learner" else []
            rows.append([*setting(entry, allowed), *named])
        title = f"### {section}\n" + (f"\n{sentence(heads[section])}\n" if heads.get(section) else "")
        parts.append((title if section else "### Of the whole run\n") + "\n" + table(head, rows))
    return "## Settings\n\n" + "\n".join(parts)


def environment_tables() -> str:
    """All environments, and what can be set in them."""
    files = {name: CONFIGS / "env" / f"{name}.yaml" for name in choices("env")}
    common = entries(CONFIGS / "env" / "_common.yaml")
    allowed = kinds()
    own = {name: own_entries(file) for name, file in files.items()}
    rows = [setting(Entry(f"env.{entry.path}", entry.default, entry.meaning), allowed) for entry in common]
    parts = [
        "## Environments\n\n### What every environment has\n",
        table(["setting", "default", "possible", "meaning"], rows),
    ]
    general = {"family", *(entry.path for entry in common)}
    keys = dict.fromkeys((found["family"].default, key) for found in own.values() for key in found)
    rows = []
    for family, key in keys:
        if key.partition(".")[0] in general or key.startswith("arguments."):
            continue
        same = [found[key] for found in own.values() if found["family"].default == family and key in found]
        meaning = next((entry.meaning for entry in same if entry.meaning), "")
        kind = KINDS[PYTHON_KINDS[type(same[0].default)]] if same[0].default is not None else "text"
        rows.append([family, f"`env.{key}`", kind, meaning])
    parts += ["### What each family has beside it\n", table(["family", "setting", "possible", "meaning"], rows)]
    rows = []
    for name, about in choices("env").items():
        values = {f"env.{key}": entry.default for key, entry in own[name].items() if key != "family" and entry.default}
        values |= {entry.path: entry.default for entry in of_the_run(files[name])}
        rows.append([f"`env={name}`", own[name]["family"].default, about, overrides(values) if values else ""])
    parts += ["### All of them\n", table(["override", "family", "what it is", "what it sets"], rows)]
    return "\n".join(parts)


def bases(file: Path) -> list[Path]:
    """The files of other environments that one builds on."""
    names = [base.partition("@")[0] for base in yaml.safe_load(file.read_text())["defaults"]]
    return [file.with_name(f"{name}.yaml") for name in names if not name.startswith("_")]


def of_the_run(file: Path) -> list[Entry]:
    """What a file sets that is in no environment, where it sets the whole configuration, with the files before it."""
    found = {entry.path: entry for base in bases(file) for entry in of_the_run(base)}
    if "@package _global_" in file.read_text():
        found |= {entry.path: entry for entry in entries(file) if not entry.path.startswith("env.")}
    return list(found.values())


def own_entries(file: Path) -> dict[str, Entry]:
    """What an environment has in ``env``, its own file winning over those that it builds on."""
    found = {key: entry for base in bases(file) for key, entry in own_entries(base).items()}
    whole = "@package _global_" in file.read_text()
    for entry in entries(file):
        if not whole or entry.path.startswith("env."):
            path = entry.path.removeprefix("env.")
            before = found.get(path)
            found[path] = Entry(path, entry.default, entry.meaning or (before.meaning if before else ""))
    return found


def size_tables() -> str:
    """What a size consists of, and the sizes there are."""
    parts = entries(CONFIGS / "size" / "nano.yaml")
    allowed = kinds()
    meanings = [[f"`size.{part.path}`", allowed[f"size.{part.path}"], part.meaning] for part in parts]
    rows = []
    for name, about in choices("size").items():
        values = {entry.path: entry.default for entry in entries(CONFIGS / "size" / f"{name}.yaml")}
        rows.append([f"`size={name}`", about, *(as_word(values[part.path]) for part in parts)])
    head = ["override", "what it is", *(part.path for part in parts)]
    return "\n".join(
        ["## Sizes\n", table(["setting", "possible", "meaning"], meanings), table(head, rows)],
    )


def group_table(group: str, title: str) -> str:
    """The choices of a group that set values elsewhere, with all that they set."""
    rows = []
    for name, about in choices(group).items():
        text = (CONFIGS / group / f"{name}.yaml").read_text()
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and not line.startswith("# @")]
        values = yaml.safe_load(text)
        bases = values.pop("defaults", [])
        pairs = [pair for base in bases if isinstance(base, dict) for pair in base.items()]
        chosen = [f"`{key.rpartition('/')[2]}={value}`" for key, value in pairs]
        same = [f"all of `experiment={base}`," for base in bases if isinstance(base, str)]
        rows.append(
            [f"`{group}={name}`", " ".join(lines) or about, " ".join([*same, *chosen, overrides(values)]).strip()]
        )
    return f"## {title}\n\n" + table(["override", "what it is", "what it sets"], rows)


def family_tables() -> str:
    """The groups that choose an algorithm and its parts, and what the learner of V1 and V2 has beside the others."""
    groups = ("algorithm", "core", "latent", "representation", "exploration")
    rows = [[f"`{group}={name}`", about] for group in groups for name, about in choices(group).items()]
    known = {entry.path for entry in entries(CONFIGS / "config.yaml")}
    own = [entry for entry in entries(CONFIGS / "algorithm" / "dreamer_v2.yaml") if entry.path.startswith("learner.")]
    more = [[f"`{entry.path}`", code(entry.default), entry.meaning] for entry in own if entry.path not in known]
    return "\n".join(
        [
            "## Algorithms\n\nWhat differs among them: [family.md](family.md).\n",
            table(["override", "what it is"], rows),
            "### learner with `algorithm=dreamer_v2` or `algorithm=dreamer_v1`\n",
            table(["setting", "default (V2)", "meaning"], more),
        ]
    )


def page() -> str:
    """The whole page."""
    changeable = fill(", ".join(f"`{name}`" for name in CHANGEABLE if name != "run_dir"), 119)
    parts = [
        START.format(changeable=changeable),
        setting_tables(),
        environment_tables(),
        size_tables(),
        family_tables(),
        group_table("experiment", "Experiments"),
        group_table("collector", "Collectors"),
        group_table("logger", "Loggers"),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
