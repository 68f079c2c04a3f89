"""Put the agent of a run into `pretrained/`, with its line of `results/scores.csv`; renews the tables that name it.

    python benchmarks/shelve.py runs/learning/cartpole-laptop-1 --name cartpole

An agent of that name is replaced. `learning.py` makes the run, its `evaluation.json` and the line.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from leaderboard import pages
from scores import RESULTS, Score, read_scores

from dreamer_torchrl.training.hub import packed
from dreamer_torchrl.training.loading import load
from dreamer_torchrl.training.pretrained import CARD, PRETRAINED, WEIGHTS, Card

LARGEST, LARGEST_SUM = 3_000_000, 30_000_000
"""Bytes of weights: of an agent, and of all of them."""


def score_of(card: Card, scores: list[Score]) -> Score:
    """The line of the run: the same command, evaluated with the same result."""
    if card.score is None:
        raise SystemExit("The run's newest checkpoint was not evaluated: run benchmarks/learning.py, which does it.")
    lines = [score for score in scores if score.command == card.command]
    if not lines:
        raise SystemExit(f"scores.csv has no line of `{card.command}`: run benchmarks/learning.py, which adds it.")
    score, found = lines[0], (card.steps, float(f"{card.score['mean']:.6g}"))
    if (score.steps, score.mean) != found:
        line = f"{score.mean:g} after {score.steps:,} steps in scores.csv"
        raise SystemExit(f"The run has {found[1]:g} after {found[0]:,} steps, {line}: this is another run.")
    return score


def check_sizes(folder: Path, name: str, size: int) -> None:
    others = sum(file.stat().st_size for file in folder.glob(f"*/{WEIGHTS}") if file.parent.name != name)
    if size > LARGEST:
        raise SystemExit(f"The weights have {size:,} bytes, at most {LARGEST:,} go here: use push_to_hub.")
    if others + size > LARGEST_SUM:
        raise SystemExit(f"{folder} would have {others + size:,} bytes, at most {LARGEST_SUM:,}: remove an agent.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--name", required=True, help="of the agent, such as cartpole")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where scores.csv is")
    parser.add_argument("--folder", type=Path, default=PRETRAINED, help="where the agents are")
    arguments = parser.parse_args()
    card, weights = packed(load(arguments.run))
    check_sizes(arguments.folder, arguments.name, len(weights))
    score = score_of(card, read_scores(arguments.results / "scores.csv"))
    card = replace(card, task=score.task, size=score.size, minutes=score.minutes, commit=score.commit)
    folder = arguments.folder / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CARD).write_text(card.text(), encoding="utf-8")
    if arguments.folder == PRETRAINED:  # the tables name these
        for page, text in pages().items():
            page.write_text(text, encoding="utf-8")
    print(f"{arguments.folder / arguments.name}: {len(weights):,} bytes, {score.mean:g} in {score.minutes} minutes.")


if __name__ == "__main__":
    main()
