# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every other check needs: readable facts, packages, state documents, and interfaces that are up."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts.model import Facts
from ..finding import Finding, fail, skip, warn


def unread(facts: Facts) -> Iterator[Finding]:
    for name, reason in facts.unread.items():
        yield warn(
            name,
            f"{name} could not be read: {reason}",
            "the checks that need this fact are skipped",
            "correct that and run `l4proxy doctor` again; if the doctor misread the host, report a bug",
        )


def packages(facts: Facts) -> Iterator[Finding]:
    for package, effect in facts.missing.items():
        if facts.applied:
            yield fail(
                package,
                f"{package} is not installed",
                f"without it {effect}",
                f"`apt-get install {package}`, or keeper_manage_packages: true",
            )
        else:
            yield skip(f"{package} is not installed yet: until it is, {effect}")


def documents(facts: Facts) -> Iterator[Finding]:
    for fault in facts.faults:
        yield fail(
            "documents",
            fault,
            "the keeper ignores this file, so its rules and routes are not restored at boot",
            "run the role that writes it again",
        )
    if not facts.documents and not facts.faults:
        yield fail(
            "documents",
            "this host has no state document",
            "it is set up neither as a proxy nor as a backend",
            "`ansible-playbook -i INVENTORY trueip.l4proxy.site`; if the documents are elsewhere, use --directory",
        )


def links(facts: Facts) -> Iterator[Finding]:
    routes = [route for document in facts.documents for route in document.routes]
    wanted = {peer.wanted_dev for peer in facts.peers} | {route.dev for route in routes}
    for name in sorted(name for name in wanted if name):
        if not facts.links.get(name):
            exists = name in facts.links
            yield fail(
                name,
                f"interface {name} {'is down' if exists else 'does not exist'}",
                "the document routes replies through this interface",
                f"`ip link set {name} up`" if exists else "run the site playbook again so that it gathers new facts",
            )
