"""``python -m dreamer_torchrl.plot RUN [RUN ...] [base.csv]``: learning curves, losses and rates as PNG and SVG.

Runs that differ in their seeds only are one line, their median, in a band from the lower to the upper quartile.
A CSV file is another system, a baseline: its columns are step, return, and seed if there are several.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from dreamer_torchrl.config.checks import ConfigError, nearest
from dreamer_torchrl.config.compose import VALUES, read_saved
from dreamer_torchrl.limits import at_least
from dreamer_torchrl.views.curves import Axis, Run, read_baselines, read_run
from dreamer_torchrl.views.plots import draw, save_figure

FORMATS = ("png", "svg")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.plot", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run or a sweep, or a .csv file")
    parser.add_argument("--x", choices=get_args(Axis), default="steps", help="horizontal axis (steps)")
    parser.add_argument("--metric", action="append", metavar="NAME", help="draw this instead; can be repeated")
    parser.add_argument("--label", action="append", metavar="NAME", help="of a CSV file; one for all, or one for each")
    parser.add_argument("--smooth", type=at_least(1), metavar="N", help="mean over N neighbouring points (1: none)")
    parser.add_argument("--output", type=Path, metavar="PATH", help="file, .png or .svg; both if it has no ending")
    parser.add_argument("--title", help="of the figure")
    options = parser.parse_args(arguments)
    tables = [path for path in options.runs if path.suffix.lower() == ".csv"]
    folders = [path for path in options.runs if path not in tables]
    try:
        if not folders:
            raise ConfigError(f"{tables[0]} alone cannot be drawn: name the run that it is a baseline for.")
        runs = read_runs(folders)
        check_metrics(runs, options.metric or ())
        baselines = read_baselines(tables, options.label or (), runs, options.x)
    except ConfigError as error:
        parser.error(str(error))
    for run in runs:
        if run.damaged:
            print(f"{run.path}: {run.damaged} damaged lines of metrics.jsonl are left out.", file=sys.stderr)
    figure = draw(runs, options.x, options.metric or (), options.smooth, options.title, baselines)
    place, formats = output_of(options.output, folders)
    try:
        files = save_figure(figure, place, formats)
    except OSError as error:
        print(f"Not written: {error}. Give another --output.", file=sys.stderr)
        return 1
    print(f"Drawn: {', '.join(map(str, files))}.")
    return 0


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """All runs, each once, and of a sweep those that have begun; `ConfigError` for a folder with nothing to show."""
    runs: dict[Path, Run] = {}
    for folder in (Path(folder).resolve() for folder in folders):
        members = [] if (folder / VALUES).exists() else sorted(file.parent for file in folder.glob(f"*/{VALUES}"))
        found = [read_run(member, read_saved(member)) for member in members or [folder]]
        if not any(run.metrics for run in found):
            raise ConfigError(f"{folder} has no metrics yet: let it train for a while.")
        runs |= {run.path: run for run in found if run.metrics}
    return list(runs.values())


def check_metrics(runs: Sequence[Run], metrics: Iterable[str]) -> None:
    known = sorted({name for run in runs for name in run.metrics})
    for metric in metrics:
        if metric not in known:
            hint = nearest(metric, known) or f" There are: {', '.join(known)}."
            raise ConfigError(f"There is no metric {metric!r} in metrics.jsonl.{hint}")


def output_of(output: Path | None, runs: Sequence[Path]) -> tuple[Path, tuple[str, ...]]:
    """The file to write, its ending to be replaced, and the formats; by default `plot` in the only run, or here."""
    output = output or (runs[0] if len(runs) == 1 else Path())
    if output.is_dir():
        output = output / "plot"
    if (ending := output.suffix.lower()[1:]) in FORMATS:
        return output, (ending,)
    return output.with_name(f"{output.name}.{FORMATS[0]}"), FORMATS


if __name__ == "__main__":
    sys.exit(main())
