"""Publish the agent of a run: its weights and card as a folder, or as a model repository of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from dreamer_torchrl.checkpoint.manifest import read_manifest
from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.config.compose import OVERRIDES, Configuration, environment_name, size_name
from dreamer_torchrl.config.overrides import keys
from dreamer_torchrl.limits import ConfigError
from dreamer_torchrl.training.loading import LoadedRun, foreign_parts, load
from dreamer_torchrl.training.pretrained import CARD, WEIGHTS, Card


def packed(run: LoadedRun, licence: str = "MIT") -> tuple[Card, bytes]:
    """Card and weights of a run, without optimizer and target critic; those of a pretrained agent as they are."""
    if run.card is not None:
        return run.card, (run.path / WEIGHTS).read_bytes()
    if foreign := foreign_parts(run.settings):
        raise ConfigError(f"{run.path} has an agent.{foreign[0]} of its own, which is code: publish it as a package.")
    from safetensors.torch import save

    weights, parts = save(run.agent.state_dict(), {"format": "pt"}), run.saved.parts
    overrides = json.loads((run.path / OVERRIDES).read_text())["overrides"]
    command = ["python -m dreamer_torchrl.train", *(one for one in overrides if keys([one]) != ["run_dir"])]
    card = Card(
        task=environment_name(run.settings),
        seed=run.settings.seed,
        steps=run.step,
        size=size_name(vars(run.settings.size)) or "own",
        parameters=sum(parameter.numel() for parameter in run.agent.parameters()),
        score=_score(run),
        minutes=round(parts["progress"]["seconds"] / 60, 1),
        command=" ".join(command),
        commit=None,
        licence=licence,
        versions=read_manifest(run.saved.path).versions,
        sha256=hashlib.sha256(weights).hexdigest(),
        specs=Specs.from_tree(parts["specs"]).to_tree(),
        configuration=Configuration(replace(run.settings, run_dir=""), []).values,
    )
    return card, weights


def push_to_hub(run: str | Path, repo: str, private: bool = False, licence: str = "MIT") -> str:
    """Publish a run's agent, or a pretrained one, as ``user/name``; returns the address of the commit.

    A repository that is not there is created, ``private`` or not. ``licence`` is that of the weights of a run.
    """
    hub = _hub()
    card, weights = packed(load(run), licence)
    api = hub.HfApi()
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    files = {CARD: card.text().encode(), WEIGHTS: weights, "README.md": model_card(card, repo).encode()}
    operations = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(repo, operations, commit_message=f"{card.task} after {card.steps:,} steps").commit_url


def load_from_hub(repo: str, revision: str | None = None) -> LoadedRun:
    """Load an agent that `push_to_hub` published; ``revision`` is a branch, a tag or a commit."""
    hub = _hub()
    folder = Path(hub.hf_hub_download(repo, CARD, revision=revision)).parent  # named after the commit
    hub.hf_hub_download(repo, WEIGHTS, revision=folder.name)
    return load(folder)


def model_card(card: Card, repo: str) -> str:
    """The README of a repository, with the metadata that the Hub reads."""
    hub, kind, score = _hub(), "reinforcement-learning", card.score
    known = {"license": card.licence.lower(), "library_name": "dreamer_torchrl", "pipeline_tag": kind}
    known |= {"tags": [kind, "dreamer", "torchrl"], "model_name": repo}
    if score:
        known["eval_results"] = [hub.EvalResult(kind, card.task, card.task, "mean_reward", round(score["mean"], 2))]
    template = resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    names = {"repo": repo, "weights": WEIGHTS, "file": CARD}
    return str(hub.ModelCard.from_template(hub.ModelCardData(**known), template_str=template, card=card, **names))


def _score(run: LoadedRun) -> dict[str, float] | None:
    """What `evaluate` found last, if it was with this checkpoint."""
    file = run.path / "evaluation.json"
    result = json.loads(file.read_text()) if file.is_file() else {}
    if result.get("checkpoint") != run.name:
        return None
    episodes = {"episodes": len(result["returns"])}
    return episodes | {name: result[name] for name in ("mean", "deviation", "seed", "deterministic")}


def _hub() -> ModuleType:
    if not find_spec("huggingface_hub"):
        raise ConfigError("huggingface_hub is not installed: pip install 'dreamer_torchrl[hub]'")
    return import_module("huggingface_hub")
