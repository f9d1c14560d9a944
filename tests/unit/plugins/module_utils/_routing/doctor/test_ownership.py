# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Objects by owner, and foreign rules and routes."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import ownership
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import KernelObject

from .. import fakes
from . import cases, fake_doctor


def test_objects_are_listed_by_owner_in_the_sections_of_a_document(tmp_path, monkeypatch):
    host = fake_doctor.FakeDoctor(tmp_path, monkeypatch)
    host.apply()
    found = ownership.owned(host.sources.host, (documents.load(fakes.RETURN_PATH),))
    assert list(found) == ["announce", "kernel_datapath", "local_delivery", "return_path"]
    assert found["return_path"]["rules"] == fakes.RETURN_PATH["rules"]
    assert found["return_path"]["marks"] == fakes.RETURN_PATH["marks"]
    redirects = {"name": "net.ipv4.conf.all.accept_redirects", "value": "0", "restore": "1"}
    assert found["return_path"]["sysctls"] == [redirects]
    assert not any(found["local_delivery"].values())


def test_foreign_rules_exclude_the_kernels_and_foreign_routes_only_include_our_tables():
    kernels, theirs = cases.foreign_rule(2, priority=32766, table=254), cases.foreign_rule(3, priority=100, table=7)
    near = cases.foreign_route(table=20111, via=cases.ROUTER, metric=9)
    far = cases.foreign_route(table=7, via=cases.ROUTER)
    rules = (*cases.BACKEND.rules, kernels, theirs, KernelObject(None, 4, "ipv6"))
    found = ownership.foreign(replace(cases.BACKEND, rules=rules, routes=(*cases.BACKEND.routes, near, far)))
    first = {"family": "ipv4", "text": "ip rule 100: from all lookup 7", "protocol": 3, "owner": "proto boot"}
    assert found["rules"][0] == first
    assert [row["owner"] for row in found["rules"]] == ["proto boot", "proto static"]
    assert [row["text"] for row in found["routes"]] == ["ip route default via 198.18.0.1 table 20111 metric 9"]
