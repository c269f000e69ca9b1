"""Reads arguments that may come from a template, and then are texts; strictly. The standard library only."""

from __future__ import annotations

import math
from typing import Any


def boolean(name: str, value: Any) -> bool:
    """Read a truth value: the text "False" is false.

    :param name: the argument's, for the error.
    :raises ValueError: when it is none.
    """
    words = {"true": True, "false": False}
    known = value if isinstance(value, bool) else words.get(str(value).strip().lower())
    if known is None:
        raise ValueError(f"{name} must be True or False, not {value!r}.")
    return known


def number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> float:
    """Read a number.

    :param name: the argument's, for the error.
    :param least: that it must be at least.
    :param above: that it must be above.
    :param most: that it must be at most.
    :raises ValueError: when it is none of these.
    """
    try:
        read = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        read = math.nan
    if not (least <= read <= most and read > above):
        bounds = [
            f"at least {least:g}" if least > -math.inf else "",
            f"above {above:g}" if above > -math.inf else "",
            f"at most {most:g}" if most < math.inf else "",
        ]
        raise ValueError(f"{name} must be a number {' and '.join(filter(None, bounds))}, not {value!r}.")
    return read


def whole(name: str, value: Any, *, least: int, most: float = math.inf) -> int:
    """Read a whole number; parameters and errors are those of :func:`number`."""
    read = number(name, value, least=least, most=most)
    if not read.is_integer():
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    return int(read)
