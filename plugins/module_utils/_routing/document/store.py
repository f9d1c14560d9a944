# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory of state documents, one file for each owner. The keeper applies them at boot."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from ..errors import DocumentError
from . import documents
from .documents import Document

MODE = 0o644


@dataclass(frozen=True)
class Stored:
    """A file of the directory: its document, or its errors."""

    path: str
    document: Document | None = None
    errors: tuple[str, ...] = ()


def path_of(directory: str, owner: str) -> str:
    return os.path.join(directory, f"{owner}.json")


def content_of(document: Document) -> str:
    """The text of the file; the same for equal documents."""
    return json.dumps(documents.dump(document), indent=2) + "\n"


def load(path: str) -> Document:
    """Read and check one file. DocumentError (also for a file that is not JSON), OSError."""
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise DocumentError([f"is not JSON: {error}"]) from error
    document = documents.load(data)
    if os.path.basename(path) != f"{document.owner}.json":
        raise DocumentError([f"owner: the document of owner {document.owner} must be named {document.owner}.json"])
    return document


def load_all(directory: str) -> list[Stored]:
    """Every ``*.json`` of the directory, in the order of names. An invalid file does not hide the others.

    Two documents with the same protocol number would purge each other's objects, so both are invalid.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json") and not name.startswith("."))
    except FileNotFoundError:
        return []
    files = [_load(os.path.join(directory, name)) for name in names]
    return [_with_unique_protocol(stored, files) for stored in files]


def _load(path: str) -> Stored:
    try:
        return Stored(path, load(path))
    except DocumentError as error:
        return Stored(path, None, tuple(error.errors))
    except (OSError, UnicodeDecodeError) as error:
        return Stored(path, None, (f"cannot be read: {error}",))


def _with_unique_protocol(stored: Stored, others: list[Stored]) -> Stored:
    if stored.document is None:
        return stored
    number = stored.document.protocol
    for other in others:
        if other is not stored and other.document and other.document.protocol == number:
            return Stored(
                stored.path, None, (f"protocol: {number} is also used by {other.path}; each owner needs its own",)
            )
    return stored
