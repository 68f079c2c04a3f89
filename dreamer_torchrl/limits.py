"""What is wrong in settings: the error, and limits of numbers, written at the fields that they limit; plain Python."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A setting or override is wrong; the message names it, its value and the remedy."""


@dataclass(frozen=True)
class Within:
    """Limits of a number for pydantic, under its names; strings and booleans, which it would convert, are refused."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    allow_inf_nan: bool | None = None

    def __get_pydantic_core_schema__(self, source: type, handler: Callable[[type], dict[str, Any]]) -> dict[str, Any]:
        from pydantic_core import PydanticCustomError, core_schema

        def number(value: Any) -> Any:
            if isinstance(value, bool | str):
                kind = "integer" if source is int else "number"
                raise PydanticCustomError("number_type", "Input should be a valid {kind}", {"kind": kind})
            return value

        schema = handler(source) | {name: limit for name, limit in vars(self).items() if limit is not None}
        return core_schema.no_info_before_validator_function(number, schema)


def at_least(least: int) -> Callable[[str], int]:
    """A type of argparse's: whole numbers from a least one on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise ArgumentTypeError(f"{text} is impossible: give at least {least}.")
        return int(text)

    return number
