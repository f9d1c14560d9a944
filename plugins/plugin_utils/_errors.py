# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a derivation refuses: all faults together, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable


class DerivationError(ValueError):
    """The variables of a run are refused.

    :ivar errors: one sentence for each fault, in the order found.
    """

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        super().__init__("\n".join(self.errors))


class UnreadableVariable(DerivationError):
    """A variable whose template cannot be evaluated.

    :param what: the variable and its host: "l4proxy_address of b".
    :ivar reason: what the template engine says.
    """

    def __init__(self, what: str, reason: object, advice: str = "") -> None:
        self.what, self.reason = what, str(reason)
        super().__init__([f"{what} cannot be evaluated: {reason}{advice}"])


def raise_all(errors: Iterable[str]) -> None:
    """Raise :class:`DerivationError` with ``errors`` if there are any."""
    faults = list(errors)
    if faults:
        raise DerivationError(faults)


def collect(errors: list[str], call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the result of a call, or None; the faults of its :class:`DerivationError` are added to ``errors``."""
    try:
        return call(*arguments, **options)
    except DerivationError as error:
        errors.extend(error.errors)
        return None
