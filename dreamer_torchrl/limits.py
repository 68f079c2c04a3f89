"""Least and greatest values of numbers, written at the fields that they limit; plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Within:
    """Limits of a number, for ``Annotated``: pydantic checks them, and nothing here imports it.

    Args:
        ge: least value.
        gt: every value is greater than this.
        le: greatest value.
        lt: every value is less than this.
        allow_inf_nan: whether infinity is a value.

    Example:
        >>> from typing import Annotated
        >>> from pydantic import TypeAdapter
        >>> TypeAdapter(Annotated[float, Within(gt=0)]).validate_python(0.5)
        0.5
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    allow_inf_nan: bool | None = None

    def __get_pydantic_core_schema__(self, source: type, handler: Callable[[type], dict[str, Any]]) -> dict[str, Any]:
        """What pydantic asks of an annotation."""
        return handler(source) | {name: limit for name, limit in vars(self).items() if limit is not None}
