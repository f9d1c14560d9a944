# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong, as the caller must tell it apart: wait and try again, install something, or ask a human."""

from __future__ import annotations

from collections.abc import Iterable


class RoutingError(Exception):
    """Base of all; the text is a sentence for a person."""


class SeveralErrors(RoutingError):
    """Carries ``errors``, a list of sentences; the text is all of them."""

    def __init__(self, errors: Iterable[str]):
        self.errors = list(errors)
        super().__init__("; ".join(self.errors))


class DocumentError(SeveralErrors):
    """The state document is wrong; each error begins with its path, such as ``rules[2].table: ...``."""


class Refused(SeveralErrors):
    """What is asked cannot be had beside what the host has; nothing was touched."""


class NotReady(SeveralErrors):
    """Something the document needs is not there yet (a link, an on-link proxy); nothing was touched. Try again."""


class ApplyError(RoutingError):
    """A step failed; the text says which, and whether everything before it was undone."""


class MissingPackage(RoutingError):
    """A tool is not installed. ``package`` is its Debian name."""

    def __init__(self, package: str, purpose: str):
        self.package = package
        super().__init__(f"{purpose}: install the package {package}")
