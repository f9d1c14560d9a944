# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""State documents: the only place where rules, routes, marks, sysctls and addresses are validated.

    {"schema": 1, "owner": "return_path", "protocol": 202,
     "rules": [...], "routes": [...], "marks": [...], "sysctls": [...], "addresses": [...], "mark_engine": "auto",
     "services": [...], "forwarding": ["ipv4"], "announce": [...]}

``mark_engine`` is what holds the marks. ``forwarding`` are the families for which the host must forward packets.
``announce`` belongs to owner announce alone; see ``announced``.
``settle_at`` (seconds since the epoch) is the time before which no retiring object is removed early; see
``reconcile.drain``.

``load`` takes parsed JSON and returns a ``Document`` of normalised objects, or raises ``DocumentError`` with *all*
errors, each with its path. ``dump`` is the inverse. ``schema`` has the keys of the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import DocumentError
from . import announced, formatting, own_traffic, readers, schema, service_schema
from .announced import Announced
from .kernel_service import KernelService
from .model import OWNERS, SINGLE_OBJECTS, Address, Mark, Route, Rule, Sysctl

SCHEMA = 1
# section: (the keys of its objects, the check of all keys together, the constructor)
SHAPES: dict[str, tuple[readers.Fields, Any, Any]] = {
    "rules": (schema.RULE, schema.check_document_rule, Rule),
    "routes": (schema.ROUTE, schema.check_route, Route),
    "marks": (schema.MARK, schema.check_mark, schema.make_mark),
    "sysctls": (schema.SYSCTL, readers.check_retiring, Sysctl),
    "addresses": (schema.ADDRESS, schema.check_address, Address),
    "services": (service_schema.SERVICE, service_schema.check, service_schema.make),
    "announce": (schema.ANNOUNCED, schema.check_address, Announced),
}
SECTIONS = tuple(SHAPES)
KEYS = ("schema", "owner", "protocol", *SECTIONS, "forwarding", "mark_engine", "settle_at")
# Version 0.1.0 does not know them, so they are written only where they are used.
OPTIONAL = ("services", "announce")


@dataclass(frozen=True)
class Document:
    owner: str
    protocol: int
    rules: tuple[Rule, ...] = ()
    routes: tuple[Route, ...] = ()
    marks: tuple[Mark, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    addresses: tuple[Address, ...] = ()
    mark_engine: str = "auto"
    settle_at: int | None = None
    services: tuple[KernelService, ...] = ()
    # The families for which the host must forward packets.
    forwarding: tuple[str, ...] = ()
    announce: tuple[Announced, ...] = ()

    @property
    def bypass(self) -> int | None:
        """The mark, which is also its mask, of replies to services that must not be delivered locally."""
        return service_schema.bypass(self.rules)

    @property
    def is_empty(self) -> bool:
        return not any(getattr(self, section) for section in SECTIONS)


def load(data: Any) -> Document:
    """The document, validated and normalised. Raises DocumentError with every error."""
    if not isinstance(data, dict):
        raise DocumentError([f"the document is a {type(data).__name__}, expected an object with {', '.join(KEYS)}"])
    _refuse_other_schema(data)
    errors: list[str] = [
        f"{key}: unknown key, expected one of {', '.join(KEYS)}" for key in sorted(set(data) - set(KEYS))
    ]
    owner, protocol = _owner(data, errors)
    mark_engine = _value(data, "mark_engine", schema.mark_engine, errors) or "auto"
    settle_at = _value(data, "settle_at", readers.time, errors)
    forwarding = tuple(sorted(set(_value(data, "forwarding", schema.forwarding, errors) or ())))
    sections = {section: _objects(data, section, errors) for section in SECTIONS}
    for section, values in sections.items():
        errors.extend(_duplicates(section, values))
    errors.extend(_unbounded_rules(sections["rules"], sections["routes"]))
    errors.extend(_marks_together(sections["marks"]))
    errors.extend(_addresses_together(sections["addresses"]))
    if sections["announce"] and owner and owner != announced.OWNER:
        errors.append(f"announce: only the document of owner {announced.OWNER} may have it")
    together = (forwarding, sections["rules"], sections["sysctls"])
    errors.extend(service_schema.together(owner, sections["services"], *together))
    if errors:
        raise DocumentError(errors)
    objects = {name: tuple(values) for name, values in sections.items()}
    return Document(owner, protocol, **objects, mark_engine=mark_engine, settle_at=settle_at, forwarding=forwarding)


def _refuse_other_schema(data: dict[str, Any]) -> None:
    number = data.get("schema")
    if number != SCHEMA or isinstance(number, bool):
        newer = isinstance(number, int) and number > SCHEMA
        remedy = "it is from a newer l4proxy: update l4proxy on this host" if newer else f"expected {SCHEMA}"
        raise DocumentError([f"schema: {number!r} is not supported, {remedy}"])


def _owner(data: dict[str, Any], errors: list[str]) -> tuple[str, int]:
    """The owner's name and protocol number; "" and 0 for invalid ones."""
    values: dict[str, Any] = {}
    for name, convert in (("owner", schema.owner), ("protocol", schema.protocol)):
        try:
            values[name] = convert(data[name])
        except KeyError:
            errors.append(f"{name}: required")
        except ValueError as error:
            errors.append(f"{name}: {error}")
    owner, protocol = values.get("owner"), values.get("protocol")
    if owner and protocol:
        taken = {number: known for known, number in OWNERS.items()}
        if owner in OWNERS and protocol != OWNERS[owner]:
            errors.append(f"protocol: {protocol} is not that of owner {owner}, expected {OWNERS[owner]}")
        elif owner not in OWNERS and protocol in taken:
            errors.append(f"protocol: {protocol} belongs to owner {taken[protocol]}")
        elif protocol == SINGLE_OBJECTS:
            errors.append(f"protocol: {protocol} belongs to the modules policy_rule and policy_route")
    return owner or "", protocol or 0


def _value(data: dict[str, Any], key: str, read: Callable[[Any], Any], errors: list[str]) -> Any:
    """The value of a key of the document itself; None where it is absent or invalid."""
    try:
        return None if data.get(key) in (None, "") else read(data[key])
    except readers.Invalid as error:
        errors.extend(f"{key}{path}: {problem}" for path, problem in error.problems)
    except ValueError as error:
        errors.append(f"{key}: {error}")
    return None


def _objects(data: dict[str, Any], section: str, errors: list[str]) -> list[Any]:
    """The objects of one section; an invalid one becomes None, so that the others keep their index."""
    items = data.get(section, [])
    if not isinstance(items, list):
        errors.append(f"{section}: is a {type(items).__name__}, expected a list")
        return []
    return [_object(item, section, f"{section}[{index}]", errors) for index, item in enumerate(items)]


def storable(section: str, value: Any) -> bool:
    """Whether a document can contain an object; someone may have added it manually with the owner's protocol number."""
    errors: list[str] = []
    _object(schema.dump(value), section, section, errors)
    return not errors


def _object(item: Any, section: str, path: str, errors: list[str]) -> Any | None:
    fields, check, make = SHAPES[section]
    values, wrong = readers.convert(item, fields)
    if not wrong and check:
        wrong = check(values)
    if not wrong:
        try:
            return make(**values)
        except ValueError as error:
            wrong = [("", str(error))]
    errors.extend(f"{path}.{name}: {problem}" if name else f"{path}: {problem}" for name, problem in wrong)
    return None


def _duplicates(section: str, values: list[Any]) -> list[str]:
    errors: list[str] = []
    seen: dict[tuple[Any, ...], int] = {}
    for index, value in enumerate(values):
        if value is None:
            continue
        if value.key in seen:
            errors.append(f"{section}[{index}]: duplicates {section}[{seen[value.key]}] ({formatting.describe(value)})")
        seen.setdefault(value.key, index)
    return errors


def _unbounded_rules(rules: list[Rule | None], routes: list[Route | None]) -> list[str]:
    """Errors for rules by which the host would deliver to itself what it sends to others."""
    local = own_traffic.local_tables(route for route in routes if route)
    reasons = ((index, own_traffic.unbounded(rule, local)) for index, rule in enumerate(rules) if rule)
    return [f"rules[{index}]: {reason}" for index, reason in reasons if reason]


def _marks_together(marks: list[Mark | None]) -> list[str]:
    """Errors for marks that conflict: all share one mask, and a MAC or a name belongs to one proxy. (Ids: _duplicates.)

    While a mark retires because the id or the mask has changed, two marks may have its name and addresses.
    """
    errors: list[str] = []
    owners: dict[str, int] = {}
    first: Mark | None = None
    for index, mark in enumerate(marks):
        if mark is None:
            continue
        first = first or (None if mark.retiring else mark)
        if first and not mark.retiring and mark.mask != first.mask:
            errors.append(f"marks[{index}].mask: {mark.mask:#x} differs from {first.mask:#x}; all marks share one mask")
        once: dict[str, Iterable[Any]] = {"mac": mark.macs}
        if not mark.retiring:
            once |= {"name": [mark.name], "via": mark.via, "iif": [mark.iif], "transparent": [mark.transparent]}
        for field, values in once.items():
            for value in filter(None, values):
                if owners.setdefault(f"{field} {value}", index) != index:
                    errors.append(
                        f"marks[{index}].{field}: {value} is already used by marks[{owners[f'{field} {value}']}]"
                    )
    return errors


def _addresses_together(addresses: list[Address | None]) -> list[str]:
    """Errors for addresses listed twice; a retiring one may be on the interface from which the address moves."""
    first: dict[str, int] = {}
    return [
        f"addresses[{index}].address: {address.address} is already used by addresses[{first[address.address]}]"
        for index, address in enumerate(addresses)
        if address and not address.retiring and first.setdefault(address.address, index) != index
    ]


def dump(document: Document) -> dict[str, Any]:
    """The document as JSON data, every object normalised and in its natural order."""
    sections = {name: sorted(getattr(document, name), key=lambda value: value.order) for name in SECTIONS}
    rest: dict[str, Any] = {} if document.mark_engine == "auto" else {"mark_engine": document.mark_engine}
    if document.settle_at is not None:
        rest["settle_at"] = document.settle_at
    if document.forwarding:
        rest["forwarding"] = list(document.forwarding)
    written = {name: values for name, values in sections.items() if values or name not in OPTIONAL}
    return {
        "schema": SCHEMA,
        "owner": document.owner,
        "protocol": document.protocol,
        **{name: [schema.dump(value) for value in values] for name, values in written.items()},
        **rest,
    }
