# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy check``: one line when all is well, every error on its own line when not."""

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import check_command

from ..config.config_data import minimal

LISTEN = [{"address": "0.0.0.0", "port": 80}, {"address": "0.0.0.0", "port": 81}]
GOOD = {**minimal(), "services": [{**minimal()["services"][0], "listen": LISTEN}]}


def wide(listen, backends):
    """A config with so many listen addresses and backends, in services of 1,000 each."""
    services = []
    for first in range(0, max(listen, backends), 1000):
        few, many = (range(max(1, min(1000, count - first))) for count in (listen, backends))
        addresses = [{"address": f"10.{first // 1000}.0.1", "port": n + 1} for n in few]
        servers = [{"name": f"b{n}", "ipv4": f"10.9.{n // 250}.{n % 250}", "port": 80} for n in many]
        services.append({"name": f"s{first}", "listen": addresses, "backends": servers})
    return {**GOOD, "services": services, "workers": 1}


def checks_tls(ca_file):
    """A config whose health checks verify certificates."""
    tls = {"verify": True, "server_name": "b.example", **({"ca_file": ca_file} if ca_file else {})}
    return {**GOOD, "services": [{**GOOD["services"][0], "health": {"tls": tls}}]}


KEYS = (
    "admin, deny_files, drain_memory, drain_timeout, hash_table, healthy_needs, log, metrics, never_ban, proxy_id, "
    "schema, services, source_ports, virtual_addresses, workers"
)


@pytest.mark.parametrize(("document", "output"), [
    (GOOD, "ok: {path}: 1 service, 2 listen addresses, 1 backend\n"),
    ({**GOOD, "proxy_id": 0, "x": 1},
     f"proxy_id: 0 is not a proxy id (1-255)\nx: is not a known key; the known ones are {KEYS}\n"),
    (checks_tls("/none"), "services[0].health.tls.ca_file: /none cannot be loaded: No such file or directory\n"),
    (checks_tls("/dev/null"), "services[0].health.tls.ca_file: /dev/null cannot be loaded: "),
    (checks_tls(None), "ok: {path}: "),
    (wide(16384, 17), "ok: {path}: "),
    (wide(17, 16384), "ok: {path}: "),
    (wide(16385, 17), "services: have 16385 listen addresses (each port of a range counts); the limit is 16384 per"),
    (wide(17, 16385), "services: have 16385 backends; the limit is 16384 per proxy: use several proxies"),
])  # fmt: skip
def test_a_config_is_ok_or_every_error_is_printed(tmp_path, capsys, document, output):
    path = tmp_path / "forwarder.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert check_command.run(str(path)) == (0 if output.startswith("ok: ") else 1)
    printed = capsys.readouterr().out
    assert printed.startswith(output.format(path=path))
    assert printed.count("\n") == max(1, output.count("\n"))


def test_a_missing_config_is_an_error(tmp_path, capsys):
    assert check_command.run(str(tmp_path / "none")) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'none'}: cannot be read: No such file or directory\n"
