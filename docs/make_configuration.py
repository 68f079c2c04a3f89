"""Write `configuration.md` from `configs/` and the types of the settings.

    python docs/make_configuration.py

What a setting means is written once: as the comment behind it, in the first file under `configs/` that has it.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dreamer_torchrl.config import schema as settings_file
from dreamer_torchrl.config.checks import ABOVE_ZERO, ENDLESS, LEAST, MOST, as_word, leaves
from dreamer_torchrl.config.compose import CHANGEABLE, choices
from dreamer_torchrl.config.schema import EnvironmentSettings, Settings

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "configuration.md"

ENTRY = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")
SECTIONS = ("replay", "learner", "eval", "checkpoint", "log", "wandb")
KINDS = {bool: "true, false", int: "whole number", float: "number", str: "word", dict: "entries"}

START = """\
# Configuration

Made by `python docs/make_configuration.py` from `configs/` and the types in `dreamer_torchrl/config/schema.py`: change
those.

## How to set something

`python -m dreamer_torchrl.train` takes words as Hydra does, all of the form `key=value`:

- Four groups choose a file: `env`, `size`, `experiment` and `logger`. `python -m dreamer_torchrl.train list` prints
  what each can be.
- Everything else is one value: `seed=1`, an inner one with dots as `learner.horizon=100`, a list as
  `learner.betas=[0.9,0.99]`, nothing as `null`.
- Where several say something, the last wins: `config.yaml`, then `env`, `size`, `logger`, `experiment`, then the words
  in their order.
- Where no experiment is named, the one that is called like the environment is taken (`env=pendulum` takes
  `experiment=pendulum`). `experiment=null` asks for the plain defaults. An Atari game is an environment (`env=pong` is
  `env=atari env.game=pong`).
- New entries can stand only under `env.arguments`, which goes to the environment as it is:
  `env=gym env.id=CarRacing-v3 env.arguments.continuous=false`.
- `--multirun` (or `-m`) starts a run for each combination of values behind commas, one after another, each in a folder
  of its own: `--multirun seed=0,1,2 env=cartpole,pendulum`. The same words with the `run_dir` it printed continue them.
- In a shell, words with spaces or brackets want quotes: `'learner.betas=[0.9, 0.99]'`.

`--help` prints `config.yaml`; `--cfg` behind other words prints what they come to and stops. Words are checked before
anything is loaded: a mistake ends in exit code 2 and names the nearest right word
([what it says](faults.md#wrong-words)).

`run_dir=RUN` continues the run that is in that folder, with the settings that it was started with; no others need be
given. What can be changed then: {changeable}.
Anything else would make it another run and is refused.

Names that scripts may rely on: `run_dir`, `seed`, `total_steps`, `size`, `device`, `compile`, `train_ratio`,
`env.num_envs`, `eval.every`, `eval.episodes`, `wandb.mode`.

*Steps* are decisions of the agent, over all environments together. *Frames* count what the environments did in between
(Atari: four a decision) and are logged beside the steps. `train_ratio` says how many replayed steps each step earns:
128 with batches of 16 x 16 is half an update a step. Learning starts once a batch is there, or after `prefill` steps.
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
    """Comments behind the official numbers in `settings.py`: how the official code calls them."""
    text = Path(settings_file.__file__).read_text()
    body = next(node for node in ast.parse(text).body if getattr(node, "name", "") == "Hyperparameters").body
    lines = {node.lineno: node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    tokens = tokenize.generate_tokens(StringIO(text).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {name: comments[line] for line, name in lines.items() if line in comments}


def kinds(kind: type, path: str = "") -> Iterator[tuple[str, str]]:
    """What each setting can be, in words."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from kinds(hint, f"{path}{name}.")
        else:
            yield f"{path}{name}", in_words(hint) + limits(f"{path}{name}")


def in_words(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return f"{in_words(arguments[0])}, null"
    if origin is Literal:
        return ", ".join(arguments)
    if origin is tuple:
        return "list of words" if ... in arguments else f"{len(arguments)} numbers"
    return KINDS.get(hint, "entries")


def limits(path: str) -> str:
    """Least and most that a setting can be, in words."""
    least, most = LEAST.get(path), MOST.get(path)
    if least is not None and most is not None:
        text = f", {least} to {most if most != 2**63 - 1 else '2^63 - 1'}"
    elif least is not None:
        text = f", {least} or more"
    else:
        text = "" if most is None else f", {most} or less"
    return text + (", above 0" if path in ABOVE_ZERO else "") + (" (inf: never)" if path in ENDLESS else "")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def setting(entry: Entry, possible: Mapping[str, str]) -> list[str]:
    """A row about a setting; what is nothing by default can be nothing."""
    kind = possible[entry.path]
    nothing = ", null" if entry.default is None and "null" not in kind else ""
    return [f"`{entry.path}`", code(entry.default), kind + nothing, entry.meaning]


def sentence(text: str) -> str:
    """A comment as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def code(value: Any) -> str:
    """A value as it is written, marked as code; a dictionary as YAML has it."""
    return f"`{value if isinstance(value, dict) else as_word(value)}`"


def words(values: Mapping[str, Any]) -> str:
    """Values as the words that would ask for them."""
    return " ".join(f"`{path}={as_word(value)}`" for path, value in leaves(values).items())


def setting_tables() -> str:
    """Everything that all runs have, section by section."""
    possible = dict(kinds(Settings))
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
            named = [f"`{official.get(name, name)}`"] if section == "learner" else []
            rows.append([*setting(entry, possible), *named])
        title = f"### {section}\n" + (f"\n{sentence(heads[section])}\n" if heads.get(section) else "")
        parts.append((title if section else "### Of the whole run\n") + "\n" + table(head, rows))
    return "## Settings\n\n" + "\n".join(parts)


def environment_tables() -> str:
    """All environments, and what can be set in them."""
    files = {name: CONFIGS / "env" / f"{name}.yaml" for name in choices("env")}
    common = entries(CONFIGS / "env" / "_common.yaml")
    possible = dict(kinds(EnvironmentSettings, "env."))
    own = {name: own_entries(file) for name, file in files.items()}
    rows = [setting(Entry(f"env.{entry.path}", entry.default, entry.meaning), possible) for entry in common]
    parts = [
        "## Environments\n\n### What every environment has\n",
        table(["setting", "default", "possible", "meaning"], rows),
    ]
    keys = dict.fromkeys((found["family"].default, key) for found in own.values() for key in found)
    rows = []
    for family, key in keys:
        if key == "family":
            continue
        same = [found[key] for found in own.values() if found["family"].default == family and key in found]
        meaning = next((entry.meaning for entry in same if entry.meaning), "")
        kind = KINDS[type(same[0].default)] if same[0].default is not None else "word"
        rows.append([family, f"`env.{key}`", kind, meaning])
    parts += ["### What each family has beside it\n", table(["family", "setting", "possible", "meaning"], rows)]
    rows = []
    for name, about in choices("env").items():
        values = {key: entry.default for key, entry in own[name].items() if key != "family" and entry.default}
        rows.append([f"`env={name}`", own[name]["family"].default, about, words({"env": values}) if values else ""])
    parts += ["### All of them\n", table(["word", "family", "what it is", "own settings"], rows)]
    return "\n".join(parts)


def own_entries(file: Path) -> dict[str, Entry]:
    """What an environment has beside the common settings, its own file winning over those that it builds on."""
    found: dict[str, Entry] = {}
    for base in yaml.safe_load(file.read_text())["defaults"]:
        if not base.startswith("_"):
            found |= own_entries(file.with_name(f"{base}.yaml"))
    common = {entry.path for entry in entries(file.with_name("_common.yaml"))}
    for entry in entries(file):
        if entry.path not in common:
            before = found.get(entry.path)
            found[entry.path] = Entry(entry.path, entry.default, entry.meaning or (before.meaning if before else ""))
    return found


def size_tables() -> str:
    """What a size consists of, and the sizes there are."""
    parts = entries(CONFIGS / "size" / "nano.yaml")
    possible = dict(kinds(Settings))
    meanings = [[f"`size.{part.path}`", possible[f"size.{part.path}"], part.meaning] for part in parts]
    rows = []
    for name, about in choices("size").items():
        values = {entry.path: entry.default for entry in entries(CONFIGS / "size" / f"{name}.yaml")}
        rows.append([f"`size={name}`", about, *(as_word(values[part.path]) for part in parts)])
    head = ["word", "what it is", *(part.path for part in parts)]
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
        rows.append([f"`{group}={name}`", " ".join(lines) or about, " ".join([*same, *chosen, words(values)]).strip()])
    return f"## {title}\n\n" + table(["word", "what it is", "what it sets"], rows)


def page() -> str:
    """The whole page."""
    changeable = ", ".join(f"`{name}`" for name in CHANGEABLE if name != "run_dir")
    parts = [
        START.format(changeable=changeable),
        setting_tables(),
        environment_tables(),
        size_tables(),
        group_table("experiment", "Experiments"),
        group_table("logger", "Loggers"),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
