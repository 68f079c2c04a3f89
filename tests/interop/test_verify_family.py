"""The recordings of the official Dreamer V1 and V2 codes hold, and each bent formula is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_verification import family_of, verify_family
from recording import Recording

GOLDEN = Path(__file__).parents[1] / "golden_family"
CASES = ("v1_vision_cont", "v1_vision_disc", "v2_vision_disc", "v2_proprio_cont", "v2_gauss_both")


@pytest.mark.parametrize("case", CASES)
def test_all_quantities_agree(case: str) -> None:
    rows = verify_family(family_of(Recording(GOLDEN, case)))
    assert not [str(row) for row in rows if not row.ok]
