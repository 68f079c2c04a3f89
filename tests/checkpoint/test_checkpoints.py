"""Checkpoints: always one that is whole, checked before it is used, saved while training goes on."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, NoSoundCheckpoint
from dreamer_torchrl.checkpoint.manifest import DamagedFile, Manifest
from tests.checkpoint.checkpoint_examples import assert_same, grow, parts, small_replay

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2, that share some files of the replay and not others."""
    folder, replay = tmp_path / "checkpoints", small_replay()
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        grow(replay, 6)
        assert checkpoints.save(step, parts(step), replay, wait=True)
    checkpoints.wait()
    return folder


def twin(step: int) -> Any:
    replay = small_replay()
    for _ in range(step):
        grow(replay, 6)
    return replay


class Bomb:
    """Makes a file when its pickle is loaded."""

    def __init__(self, fuse: Path):
        self.fuse = fuse

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.fuse), "w")


def whole(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only_of(run: Path, step: int, kind: str) -> Path:
    """A file of one checkpoint that the other one does not use."""
    if kind not in ("steps", "latents"):
        return run / f"{step:012d}" / kind
    names = [{p.file.name for p in Checkpoints(run).read(f"{number:012d}").pieces} for number in (step, 3 - step)]
    return run / "replay" / next(name for name in sorted(names[0] - names[1]) if name.startswith(kind))


FILES = ["learner.pt", "loop.pt", "replay.pt", "manifest.json", "steps", "latents"]
FAULTS: dict[str, Callable[[bytes], bytes | None]] = {
    "bit_flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "truncated": lambda content: content[:-2],
    "longer": lambda content: content + b"0",
    "empty": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
    "missing": lambda _: None,
}


def damage(path: Path, fault: str) -> None:
    content = FAULTS[fault](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "fault"), [*((file, "bit_flipped") for file in FILES), *(("learner.pt", fault) for fault in [*FAULTS][1:])]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run: Path, file: str, fault: str) -> None:
    path = only_of(run, 2, file)
    damage(path, fault)
    before = whole(run)
    checkpoints, replay = Checkpoints(run), small_replay()
    saved = checkpoints.load(replay)
    assert saved.step == 1
    assert len(saved.damaged) == 1
    assert saved.damaged[0].startswith(f"{run / '000000000002'} is damaged: {path.name} ")
    assert_same(replay, twin(1))
    assert whole(run) == before  # loading only reads


def test_what_a_damaged_checkpoint_holds_is_kept(run: Path) -> None:
    """Its place is not in the way of the same step, nor can it be taken for newer than that."""
    damage(run / "000000000002" / "loop.pt", "bit_flipped")
    kept = whole(run / "000000000002")
    for number in ("", "-1"):
        checkpoints, replay = Checkpoints(run), small_replay()
        checkpoints.load(replay)
        grow(replay, 6)
        checkpoints.save(2, parts(2), replay)
        checkpoints.wait()
        assert checkpoints.failure is None
        assert whole(run / f"damaged-000000000002{number}") == kept
        again = Checkpoints(run).load(replay)
        assert (again.step, again.damaged) == (2, [])
        assert_same(replay, twin(2))
        damage(run / "000000000002" / "loop.pt", "bit_flipped")


@pytest.mark.parametrize("file", ["learner.pt", "loop.pt", "replay.pt", "manifest.json", "latents"])
def test_where_all_are_damaged_nothing_is_touched(run: Path, file: str) -> None:
    for path in [only_of(run, step, file) for step in (1, 2)]:
        damage(path, "truncated")
    before = whole(run)
    checkpoints = Checkpoints(run)
    with pytest.raises(NoSoundCheckpoint) as caught:
        checkpoints.load(small_replay())
    for step in (1, 2):
        assert f"{run / f'{step:012d}'} is damaged: " in str(caught.value)
    with pytest.raises(RuntimeError, match=r"holds checkpoints: load\(\) them"):
        checkpoints.save(3, parts(3), small_replay())
    assert whole(run) == before


def test_a_shared_file_of_the_replay_damages_all_that_use_it(run: Path) -> None:
    shared = Checkpoints(run).read("000000000001").pieces[0]
    damage(run / "replay" / shared.file.name, "bit_flipped")
    with pytest.raises(NoSoundCheckpoint, match=f"(?s)0002 is damaged: {shared.file.name}.*0001 is damaged: "):
        Checkpoints(run).load(small_replay())
    saved = Checkpoints(run).load()  # what was learned is none the worse for it
    assert (saved.step, saved.damaged) == (2, [])
    with pytest.raises(DamagedFile, match=shared.file.name):
        saved.restore_replay(small_replay())


@pytest.mark.parametrize("kind", ["plain", "torch"])
@pytest.mark.parametrize("file", ["learner.pt", "replay.pt", "steps", "latents"])
def test_no_code_is_run_from_a_checkpoint(run: Path, tmp_path: Path, file: str, kind: str) -> None:
    """Even where somebody made the checksums fit."""
    fuse, path = tmp_path / "fuse", only_of(run, 2, file)
    if kind == "torch":
        torch.save(Bomb(fuse), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(fuse)))
    manifest = run / "000000000002" / "manifest.json"
    forge(manifest, path)
    saved = Checkpoints(run).load(small_replay())
    assert saved.step == 1
    assert f"{path.name} is not a file of tensors and plain values" in saved.damaged[0]
    assert not fuse.exists()
    torch.load(path, weights_only=False) if kind == "torch" else pickle.loads(path.read_bytes())
    assert fuse.exists()  # it was armed


def forge(manifest: Path, path: Path) -> None:
    """Let a manifest agree with what a file holds now."""
    body = json.loads(manifest.read_text())
    for entry in [*body["files"], *(piece["file"] for piece in body["replay"])]:
        if entry["name"] == path.name:
            entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    sign(manifest, body)


def sign(manifest: Path, body: dict[str, Any]) -> None:
    """Write a manifest whose own checksum fits."""
    del body["sha256"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(body | {"sha256": digest}))


def test_every_flipped_bit_of_a_manifest_is_noticed_or_harmless(run: Path) -> None:
    content = (run / "000000000001" / "manifest.json").read_bytes()
    meant, harmless = Manifest.from_text(content), 0
    for position in range(len(content)):
        for bit in (0, 5, 7):
            changed = content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
            try:
                assert Manifest.from_text(changed) == meant
                harmless += 1
            except DamagedFile:
                pass
    assert harmless < 0.05 * 3 * len(content)  # white space


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": [{"name": "../../secret", "bytes": 1, "sha256": ""}]}, "is not a manifest"),
        ({"files": "all"}, "is not a manifest"),
        ({"files": []}, "names no replay"),
        ({"replay": []}, "names no file of the steps from position 0 on"),
    ],
    ids=["a_path", "no_list", "no_files", "no_pieces"],
)
def test_a_manifest_that_cannot_be_right_is_damage(run: Path, change: dict[str, Any], words: str) -> None:
    manifest = run / "000000000002" / "manifest.json"
    sign(manifest, json.loads(manifest.read_text()) | change)
    saved = Checkpoints(run).load(small_replay())
    assert saved.step == 1
    assert words in saved.damaged[0]


def test_a_checkpoint_of_another_version_is_no_damage(run: Path) -> None:
    """It is not put aside, and the message says which version to take."""
    manifest, before = run / "000000000002" / "manifest.json", whole(run).keys()
    sign(manifest, json.loads(manifest.read_text()) | {"format": 1})
    checkpoints = Checkpoints(run)
    with pytest.raises(
        NoSoundCheckpoint, match="has format 1, this dreamer_torchrl reads format 2: use dreamer_torchrl"
    ):
        checkpoints.load()
    with pytest.raises(RuntimeError, match="load"):
        checkpoints.save(3, parts(3), small_replay())
    assert whole(run).keys() == before


@pytest.mark.parametrize("text", ["[]", "{}", "null", "7", '{"format": 1}', "[" * 100_000, "\xff\xfe"])
def test_garbage_is_no_manifest(text: str) -> None:
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        Manifest.from_text(text)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints, replay = Checkpoints(tmp_path, keep=3), small_replay()
    for step in range(6):
        grow(replay, 6)
        checkpoints.save(step, parts(step), replay, wait=True)
    checkpoints.wait()
    assert checkpoints.names() == [f"{step:012d}" for step in (3, 4, 5)]
    for name in checkpoints.names():
        assert checkpoints.read(name).parts["loop"] == {"step": int(name)}


def test_the_same_step_is_kept_once(tmp_path: Path) -> None:
    """So that two checkpoints are of two steps, also after a run saves its last step again."""
    checkpoints, replay = Checkpoints(tmp_path, keep=2), small_replay()
    for step in (1, 2, *[3] * 12):
        grow(replay, 6)
        checkpoints.save(step, parts(step), replay, wait=True)
        checkpoints.wait()
    assert checkpoints.names() == ["000000000002", "000000000003-11"]


def test_going_back_without_loading_is_refused(run: Path) -> None:
    checkpoints, replay = Checkpoints(run), small_replay()
    checkpoints.load(replay)
    with pytest.raises(ValueError, match="Step 1 is before the checkpoint 000000000002"):
        checkpoints.save(1, parts(1), replay)


def test_there_may_be_nothing_yet(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load() is None
    (tmp_path / "replay").mkdir()
    (tmp_path / ".partial-000000000001").mkdir()
    (tmp_path / "damaged-000000000001").mkdir()
    assert Checkpoints(tmp_path).load() is None


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(4)
    tree = {
        "a": [1, 2.5, True, None, "word", (shared, {3: shared[1:3]})],
        "b": OrderedDict(x=torch.nn.Parameter(torch.ones(2)), y=shared.expand(2, 4)),
        "big": 2**80,
        "none": {},
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"tree": tree}, small_replay())
    shared.zero_()
    checkpoints.wait()
    back = checkpoints.load().parts["tree"]
    assert back["a"][:5] == [1, 2.5, True, None, "word"]
    assert torch.equal(back["a"][5][0], torch.arange(4))
    assert torch.equal(back["a"][5][1][3], torch.tensor([1, 2]))
    assert type(back["a"][5]) is tuple
    assert type(back["b"]["x"]) is torch.Tensor
    assert torch.equal(back["b"]["y"], torch.arange(4).expand(2, 4))
    assert (back["big"], back["none"]) == (2**80, {})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"learner": {"a": [0, {"b": Path("x")}]}}, r"learner\.a\[1\]\.b is a PosixPath"),
        ({"learner": {"a": {(1, 2): 3}}}, r"learner\.a is a dict, .*names or integers as keys"),
        ({"learner": np.float64(1)}, "learner is a float64"),
        ({"learner": TensorDict(a=torch.ones(1))}, "learner is a TensorDict"),
        ({"learner": torch.Size([1])}, "learner is a Size"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, tree: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Checkpoints(tmp_path).save(1, tree, small_replay())
    assert list(tmp_path.iterdir()) == []
