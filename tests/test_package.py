"""The package as a whole: what it imports, how it is layered, what its wheel holds."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dreamer_torchrl"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350
MAX_IMPORT_SECONDS = 0.5

ENVIRONMENT_LIBRARIES = {"ale_py", "Box2D", "dm_control", "gym", "gymnasium", "mujoco", "pygame"}
CONFIG_AND_FILE_LIBRARIES = {"hydra", "importlib.resources", "json", "omegaconf", "pathlib", "pickle", "wandb", "yaml"}

# From the bottom to the top: a folder or file imports from its own layer and those below, never from above.
LAYERS = (
    {"keys", "configs", "limits", "ranges"},
    {"modules"},
    {"objectives"},
    {"kernels"},
    {"agents"},
    {"learners", "envs", "collectors", "data", "checkpoint", "record", "interop"},
    {"config"},
    {"views"},
    {"training"},
    {"doctor", "dream", "evaluate", "export", "plot", "report", "sweep", "train", "verify"},
    {""},  # the package itself, which only gathers the public names
)
FORBIDDEN = {"envs": {"learners"}, "data": {"learners"}, "collectors": {"learners"}, "record": {"checkpoint"}}
"""Of the same layer, and forbidden all the same."""

HYDRA_FOLDERS = {"config"}


def name_of(source: Path) -> str:
    """Dotted name of a source file: `dreamer_torchrl/modules/rssm.py` is `dreamer_torchrl.modules.rssm`."""
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(source): source for source in SOURCES}


def folder_of(name: str) -> str:
    return name.partition(".")[2].partition(".")[0]


def layer_of(name: str) -> int:
    folder = folder_of(name)
    for layer, folders in enumerate(LAYERS):
        if folder in folders:
            return layer
    pytest.fail(f"{name}: the folder {folder!r} has no layer; give it one in LAYERS of {Path(__file__).name}")


def imports_of(name: str) -> Iterator[str]:
    """Dotted names that a module of the package imports, at its top or anywhere inside."""
    source = MODULES[name]
    package = name if source.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*anchor, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES or inner == "importlib.resources" else base


def is_from(name: str, libraries: set[str]) -> bool:
    return any(name == library or name.startswith(library + ".") for library in libraries)


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_go_down(name: str) -> None:
    """A file imports nothing from a layer above its own, and nothing that the table forbids."""
    own = [other for other in imports_of(name) if is_from(other, {"dreamer_torchrl"})]
    never = FORBIDDEN.get(folder_of(name), set())
    wrong = {(name, other) for other in own if layer_of(other) > layer_of(name) or folder_of(other) in never}
    assert not wrong, f"forbidden imports: {sorted(wrong)}; move what is shared down"


def test_one_file_knows_of_kernels() -> None:
    """The backend is optional: nothing else would notice if it were gone."""
    outside = {name for name in MODULES if folder_of(name) != "kernels"}
    users = {name for name in outside if any(is_from(other, {"dreamer_torchrl.kernels"}) for other in imports_of(name))}
    assert users == {"dreamer_torchrl.agents.backend"}


def test_imports_have_no_circle() -> None:
    """The import graph of the package can be laid out in one line."""
    graph = {name: set(imports_of(name)) & MODULES.keys() for name in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circular import: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in MODULES if folder_of(name) in {"modules", "objectives"}])
def test_mathematics_knows_no_configuration_file_or_environment(name: str) -> None:
    """Modules and objectives take plain sizes, so that each can be used alone."""
    foreign = [other for other in imports_of(name) if is_from(other, ENVIRONMENT_LIBRARIES | CONFIG_AND_FILE_LIBRARIES)]
    assert not foreign, f"{name} imports {foreign}: hand in plain values instead"


def test_only_configuration_and_training_know_hydra() -> None:
    """Everything else can be used, and read, without Hydra."""
    users = {name for name in MODULES if any(is_from(other, {"hydra", "omegaconf"}) for other in imports_of(name))}
    assert {folder_of(name) for name in users} <= HYDRA_FOLDERS, f"Hydra is imported by {sorted(users)}"


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_a_file_is_one_idea(source: Path) -> None:
    lines = len(source.read_text().splitlines())
    assert lines <= MAX_LINES, f"{source.relative_to(ROOT)} has {lines} lines, the limit is {MAX_LINES}: split it"


def run_python(program: str, cwd: Path, **environment: str) -> list[str]:
    command, variables = [sys.executable, "-c", program], {**os.environ, **environment}
    outcome = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.splitlines()


def test_import_is_fast_and_brings_no_environment_library() -> None:
    """Half a second on top of torchrl, best of three at most, and only the libraries that are needed."""
    program = (
        "import json, sys, time, torchrl; before = set(sys.modules); start = time.perf_counter();"
        "import dreamer_torchrl; seconds = time.perf_counter() - start;"
        "print(json.dumps([seconds, sorted(set(sys.modules) - before)]))"
    )
    for _ in range(3):
        seconds, added = json.loads(run_python(program, cwd=ROOT)[-1])
        if seconds < MAX_IMPORT_SECONDS:
            break
    assert seconds < MAX_IMPORT_SECONDS, f"import dreamer_torchrl adds {seconds:.2f} s to import torchrl"
    intruders = {name.partition(".")[0] for name in added} & (ENVIRONMENT_LIBRARIES | {"hydra", "wandb"})
    assert not intruders, f"import dreamer_torchrl brings in {sorted(intruders)}: import them where they are used"


UNITS = {"nano": 32, "size1m": 64, "size12m": 256, "size25m": 384, "size50m": 512, "size100m": 768, "size200m": 1024}


@pytest.mark.parametrize("path", sorted((ROOT / "configs/size").glob("*.yaml")), ids=lambda path: path.stem)
def test_sizes_hang_together(path: Path) -> None:
    """Every size has the same keys; an official one follows from its number of units."""
    size = yaml.safe_load(path.read_text())
    assert list(size) == ["belief", "hidden", "stochastic", "classes", "blocks", "depth", "units", "patch"]
    units = size["units"]
    assert units == UNITS.get(path.stem, 1536)
    assert (size["belief"], size["hidden"], size["blocks"]) == (8 * units, units, 8)
    if path.stem != "nano":
        assert (size["stochastic"], size["classes"], size["depth"], size["patch"]) == (32, units // 16, units // 16, 1)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build folder left in the tree would leak old files into the next wheel."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("configs", "dreamer_torchrl", "pretrained"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    built = subprocess.run([sys.executable, "-m", *command], cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (tree / "dist").glob("*.whl")
    return path


def test_wheel_holds_every_source_and_configuration_and_nothing_else(wheel: Path) -> None:
    """What is in the three folders is in the wheel: no forgotten sub-package, no tests."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    configs = [path for path in (ROOT / "configs").rglob("*") if path.suffix in {".py", ".yaml"}]
    pretrained = [path for path in (ROOT / "pretrained").rglob("*") if path.suffix in {".py", ".json", ".safetensors"}]
    kernels = [path for path in (PACKAGE / "kernels/csrc").iterdir() if path.suffix in {".c", ".h"}]
    templates = PACKAGE.rglob("*.jinja")
    expected = {path.relative_to(ROOT).as_posix() for path in [*SOURCES, *kernels, *templates]}
    expected |= {f"dreamer_torchrl/{path.relative_to(ROOT).as_posix()}" for path in [*configs, *pretrained]}
    assert packed == expected


def test_wheel_finds_its_configs_and_agents(wheel: Path, tmp_path: Path) -> None:
    """Away from the repository, the installed package still knows its sizes, and its pretrained agents load."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import dreamer_torchrl; from importlib.resources import files; print(dreamer_torchrl.__file__);"
        "print(*sorted(path.name for path in (files('dreamer_torchrl.configs') / 'size').iterdir()));"
        "print(dreamer_torchrl.load('pretrained/cartpole').path)"
    )
    home, sizes, agent = run_python(program, cwd=tmp_path, PYTHONPATH=str(tmp_path))[-3:]
    assert agent == str(tmp_path / "dreamer_torchrl/pretrained/cartpole")
    assert home == str(tmp_path / "dreamer_torchrl/__init__.py")
    assert sizes.split() == sorted(path.name for path in (ROOT / "configs/size").glob("*.yaml"))


def test_no_module_name_twice() -> None:
    names = [path.stem for path in SOURCES if path.stem != "__init__"]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
