"""Replay a recording of the official agent and compare number for number.

    python -m dreamer_torchrl.interop.verify tests/golden --case proprio_cont

The recordings and the comparison, `benchmarks/verification.py`, are part of the repository and not of the wheel.
"""

import sys
from importlib import import_module
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the comparison; 0 if all quantities agree, 1 if not, 2 if they cannot be compared."""
    if not (BENCHMARKS / "verification.py").is_file():
        fault = "is missing: recordings and their comparison come with the repository."
        remedy = "Clone it, install it with `pip install -e .`, and run this command in its folder."
        print(BENCHMARKS / "verification.py", fault, remedy, file=sys.stderr)
        return 2
    sys.path.insert(0, str(BENCHMARKS))
    return import_module("verification").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
