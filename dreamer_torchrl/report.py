"""``python -m dreamer_torchrl.report RUN``: one page about a run, which opens in any browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.views.report_page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreamer_torchrl.report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    try:
        print(write_report(parser.parse_args(arguments).run))
    except ConfigError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"The report cannot be written: {error}. Make room, or the folder writable.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
