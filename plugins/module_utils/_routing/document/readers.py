# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the values of a document's objects: functions that return the normalised value, or raise ValueError."""

from __future__ import annotations

import re
from typing import Any, Callable

Problems = list[tuple[str, str]]
# name: (convert, required)
Fields = dict[str, tuple[Callable[[Any], Any], bool]]


def number(low: int, high: int, what: str) -> Callable[[Any], int]:
    """A reader of integers in a range; it accepts a string of digits, because templates produce strings."""

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]+|[0-9]+", value):
            value = int(value, 0) if value.startswith("0x") else int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{value!r} is not {what} ({low}-{high})")
        return value

    return read


def one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return read


def text(pattern: str, what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return read


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def string(normalise: Callable[[str], str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a string")
        return normalise(value)

    return read


def span(low: int, high: int, what: str, many: str) -> Callable[[Any], tuple[int, int]]:
    """``53``, ``"53"``, ``"53-60"`` → (53, 60)"""
    read = number(low, high, what)

    def read_range(value: Any) -> tuple[int, int]:
        first, dash, last = str(value).partition("-")
        bounds = (read(first), read(last if dash else first))
        if bounds[0] > bounds[1]:
            raise ValueError(f"{value!r} is an empty range of {many}")
        return bounds

    return read_range


time = number(0, 2**63 - 1, "a time in seconds since 1970")
# The keys that objects of every kind have.
COMMON: Fields = {"retiring": (boolean, False), "retire_at": (time, False)}


class Invalid(ValueError):
    """The errors of a value that has parts, each with the path of its part, such as ``[0].port``."""

    def __init__(self, problems: Problems):
        self.problems = problems
        super().__init__("; ".join(f"{path}: {problem}" for path, problem in problems))


def list_of(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """A reader of lists. Invalid has the errors of all items."""

    def read_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"is a {type(value).__name__}, expected a list")
        values, wrong = [], []
        for index, item in enumerate(value):
            try:
                values.append(read(item))
            except Invalid as error:
                wrong += [(f"[{index}]{path}", problem) for path, problem in error.problems]
            except ValueError as error:
                wrong.append((f"[{index}]", str(error)))
        if wrong:
            raise Invalid(wrong)
        return tuple(values)

    return read_list


def some(read: Callable[[Any], Any], what: str) -> Callable[[Any], tuple[Any, ...]]:
    """A reader of lists with at least one item."""

    def read_some(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"{value!r} is not a list of {what}")
        return tuple(read(item) for item in value)

    return read_some


def object_of(fields: Fields) -> Callable[[Any], dict[str, Any]]:
    """A reader of objects with these keys. Invalid has the errors of all keys."""

    def read_object(value: Any) -> dict[str, Any]:
        values, wrong = convert(value, fields)
        if wrong:
            raise Invalid([(f".{name}" if name else "", problem) for name, problem in wrong])
        return values

    return read_object


def rate(high: int, what: str) -> Callable[[Any], float]:
    """A reader of numbers from 0 to ``high`` that need not be whole."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
            raise ValueError(f"{value!r} is not {what} (0-{high})")
        return float(value)

    return read


def convert(item: Any, fields: Fields) -> tuple[dict[str, Any], Problems]:
    """The values of an object by name, and its errors. A key that is null counts as absent."""
    if not isinstance(item, dict):
        return {}, [("", f"is a {type(item).__name__}, expected an object with {', '.join(fields)}")]
    wrong: Problems = [
        (str(key), f"unknown key, expected one of {', '.join(fields)}") for key in item if key not in fields
    ]
    values: dict[str, Any] = {}
    for name, (read, required) in fields.items():
        if item.get(name) is None:
            if required:
                wrong.append((name, "required"))
            continue
        try:
            values[name] = read(item[name])
        except Invalid as error:
            wrong += [(f"{name}{path}", problem) for path, problem in error.problems]
        except ValueError as error:
            wrong.append((name, str(error)))
    return values, wrong


def check_retiring(values: dict[str, Any]) -> Problems:
    return [("retire_at", "needs retiring")] if "retire_at" in values and not values.get("retiring") else []
