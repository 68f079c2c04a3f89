"""The documentation cannot go stale: examples run, and every path, name, setting and metric on a page exists."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from tests.training.training_examples import lines, trained

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
PARTS = pkgutil.walk_packages([str(ROOT / "dreamer_torchrl")], "dreamer_torchrl.")
MODULES = ["dreamer_torchrl", *sorted(part.name for part in PARTS)]
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in one language, each with the place where its first line stands."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(1)) + 1}", match[1]) for match in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[tuple[str, str]]:
    """Text and target of each link and picture that does not lead to the web."""
    found = re.findall(r"\[([^\]]*)\]\(([^)]+)\)", prose(page))
    return [(name, target) for name, target in found if "://" not in target]


EXAMPLES = [block for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("place", "code"), EXAMPLES, ids=[place for place, _ in EXAMPLES])
def test_example_runs(place: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs alone. Empty lines before it make an error point at the line of the page."""
    monkeypatch.chdir(tmp_path)
    name, line = place.rsplit(":", 1)
    exec(compile("\n" * (int(line) - 1) + code, str(ROOT / name), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    """The examples in a module's docstrings print what they say; pytest shows the differences."""
    if name.endswith("ray_actors"):
        pytest.importorskip("ray")
    outcome = doctest.testmod(importlib.import_module(name), optionflags=DOCTEST_FLAGS)
    assert not outcome.failed, f"{outcome.failed} of {outcome.attempted} docstring examples in {name} fail: see above"


def test_public_modules_have_an_example() -> None:
    modules = importlib.import_module("dreamer_torchrl.modules")
    parts = [part for part in map(modules.__dict__.get, modules.__all__) if inspect.isclass(part)]
    silent = [part.__name__ for part in parts if issubclass(part, nn.Module) and ">>>" not in (part.__doc__ or "")]
    assert not silent, f"no example in the docstrings of {silent}: add one"


def test_readme_install_and_test_commands_are_those_of_ci() -> None:
    """The line of README.md that installs and tests is in .ci/run, command by command."""
    (line,) = (line for _, block in blocks(README, "bash") for line in block.splitlines() if "pytest" in line)
    promised = line.split(" && ")
    assert len(promised) == 2
    assert [step for step in (ROOT / ".ci/run").read_text().splitlines() if step in promised] == promised


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for _, target in links(page):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, target


def definitions(source: Path) -> set[str]:
    """Names of a file's functions and classes, and ``Class.method`` of those inside."""
    found = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_each_named_function_is_in_the_file_that_is_linked() -> None:
    named = [(text, page.parent / target) for page in PAGES for text, target in links(page) if target.endswith(".py")]
    named = [(text.strip("`"), source) for text, source in named if text.startswith("`")]
    missing = [f"{name} in {source.name}" for name, source in named if name not in definitions(source)]
    assert len(named) > 60 and not missing


@every_page
def test_named_paths_exist(page: Path) -> None:
    found = re.findall(r"(?<![\w/.~-])(?:dreamer_torchrl|benchmarks|tests|docs|configs)/[\w./-]*\w", page.read_text())
    missing = [path for path in found if "NAME" not in path and not (ROOT / path).exists()]
    assert not [path for path in missing if not path.endswith("-v0")]  # a Gymnasium id


def resolves(name: str) -> bool:
    place: ModuleType | object = importlib.import_module("dreamer_torchrl")
    for part in name.split(".")[1:]:
        if isinstance(place, ModuleType) and not hasattr(place, part) and hasattr(place, "__path__"):
            try:
                importlib.import_module(f"{place.__name__}.{part}")
            except ModuleNotFoundError:
                return False
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


@every_page
def test_named_modules_exist(page: Path) -> None:
    missing = [name for name in set(re.findall(r"\bdreamer_torchrl(?:\.\w+)+", page.read_text())) if not resolves(name)]
    assert not missing


@every_page
def test_named_settings_exist(page: Path) -> None:
    """Every ``group.name`` in code is a row of configuration.md, which is made from the settings."""
    rows = set(re.findall(r"^\|.*?`([a-z_.]+)`", (DOCS / "configuration.md").read_text(), re.MULTILINE))
    rows |= {row.rpartition(".")[0] for row in rows}
    groups = {row.partition(".")[0] for row in rows if "." in row}
    found = re.findall(r"`[^`]*`", prose(page)) + [text for _, text in blocks(page, "text")]
    named = re.findall(rf"(?<![\w./])((?:{'|'.join(sorted(groups))})\.[a-z_]+)(?=[=`*\s,])", " ".join(found))
    files = ("pt", "pt2", "py", "md", "json", "jsonl", "csv", "yaml", "zip", "safetensors")
    missing = {name for name in named if name not in rows and name.partition(".")[2] not in files}
    assert not missing


def test_named_metrics_are_logged(tmp_path: Path) -> None:
    named = {key for page in PAGES for key in re.findall(r"`((?:train|count|eval|episode)/[a-z_]+)`", page.read_text())}
    known = {key for line in lines(trained(tmp_path / "run", "env=cartpole")) for key in line}
    assert len(named) > 10 and named <= known


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "configuration"], ids=lambda page: page.stem)
def test_lines_of_prose_are_short(page: Path) -> None:
    """Tables, code, headings and what is generated may be longer, and so may lines without a space to break at."""
    text = re.sub(r"<!-- made by.*?<!-- end -->", "", prose(page), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "#", "!["))]
    assert not [line for line in long if " " in line[30:]]


def test_readme_layout_exists() -> None:
    layout = next(text for _, text in blocks(README, "text") if text.startswith("dreamer_torchrl/"))
    missing = [path for path in (line.split()[0] for line in layout.splitlines()) if not (ROOT / path).exists()]
    folders = {f"dreamer_torchrl/{path.parent.name}/" for path in (ROOT / "dreamer_torchrl").glob("*/__init__.py")}
    assert not missing and folders <= set(layout.split())
