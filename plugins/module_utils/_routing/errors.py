# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors by what the caller has to do: try again later, install something, or ask a human."""

from __future__ import annotations

from collections.abc import Iterable


class RoutingError(Exception):
    """Base class; the text is a sentence for people."""


class SeveralErrors(RoutingError):
    """``errors`` is a list of sentences; the text joins them."""

    def __init__(self, errors: Iterable[str]):
        self.errors = list(errors)
        super().__init__("; ".join(self.errors))


class DocumentError(SeveralErrors):
    """The state document is invalid; each error begins with its path, such as ``rules[2].table: ...``."""


class Refused(SeveralErrors):
    """The request conflicts with the state of the host; nothing was changed."""


class NotReady(SeveralErrors):
    """Something that the document needs is missing (a link, an on-link proxy); nothing was changed. Try again later."""


class ApplyError(RoutingError):
    """A change failed; the text says which, and whether all changes made so far were undone."""


class MissingPackage(RoutingError):
    """A package is not installed. ``package`` is its Debian name."""

    def __init__(self, package: str, purpose: str):
        self.package = package
        super().__init__(f"{purpose}: install the package {package}")
