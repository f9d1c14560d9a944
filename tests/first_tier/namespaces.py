# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fleet in network namespaces: what the roles derive and their templates, with the real keepalived and FRR.

No image or systemd is needed, so a power cut is measured within seconds. The other rows use containers and `site`.
Each engine is started in a session of its own, because a kernel with autogroup shares the CPU by session; on a host,
systemd's control groups do it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import jinja2
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._announce import announce
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._virtual_ips import virtual_ips

from tests.first_tier.fleet import BACKENDS, ECHO, HTTP, KERNEL_ECHO, PROXIES, Fleet
from tests.lab.netns import REPOSITORY, NamespaceLab, stop
from tests.support import keeping, takeover
from tests.support.forwarding import Forwarder, build_archive
from tests.support.router import FLAG, Frr
from tests.support.waiting import in_threads
from tests.walk import ends

#: keeping.PROGRAM shortens the announcer's times; here they are those of the product.
keeping.PROGRAM = keeping.PROGRAM.replace("announcer.HOLD, announcer.GRACE = 1.0, 1.5", "")
HOLD = 10  # virtual_ip_hold_time
MAIN = "global_defs {{\n script_user root\n}}\ninclude {}\n"


def rendered(role: str, name: str, **variables: object) -> str:
    """The text of a role's template."""
    loader = jinja2.FileSystemLoader(REPOSITORY / "roles" / role / "templates")
    return jinja2.Environment(loader=loader, trim_blocks=True, autoescape=False).get_template(name).render(**variables)


class InNamespaces(Fleet):
    """The same fleet without Ansible; ``proxy`` commands are sent to its forwarder's socket."""

    def __init__(self, lab: NamespaceLab, directory: Path):
        super().__init__(lab, directory)
        common = {name: self.variables[name] for name in ("l4proxy_virtual_ips", "l4proxy_announce")}
        services = self.variables["l4proxy_services"]
        self.engines = takeover.Fleet(lab, directory, services, PROXIES, BACKENDS)
        self.engines.variables = dict.fromkeys((*PROXIES, *BACKENDS), common)
        self.needs = self.variables["forwarder_healthy_needs"]
        self.forwarders: dict[str, Forwarder] = {}
        self.frr: list[Frr] = []

    def deploy(self) -> None:
        for name in BACKENDS:
            host = self.lab[name]
            for port in (ECHO, *KERNEL_ECHO):
                host.spawn([sys.executable, ends.__file__, "server", name, str(port), host.ipv4, host.ipv6])
            self.lab.nginx(name, [HTTP])
        self.router.start()
        self.engines.apply()
        self.archive = build_archive(self.directory)
        for name in PROXIES:
            self.engines.apply_document(name, announce(self.engines.fleet(name), name)["document"])
        keepers = [
            keeping.Running(self.lab, self.lab[name], self.directory / name, "nft") for name in (*PROXIES, *BACKENDS)
        ]
        in_threads(lambda number: keepers[number].start(), len(keepers))
        for name in PROXIES:
            self.start_forwarder(name)
            self._start_engines(name)
        self.wait_whole()

    def start_forwarder(self, name: str) -> None:
        directory = self.directory / name / "forwarder"
        directory.mkdir(exist_ok=True)
        (directory / "forwarder.json").unlink(missing_ok=True)
        config = forwarder_config(self.engines.fleet(name), name, {"workers": 2, "healthy_needs": self.needs})
        self.forwarders[name] = Forwarder(
            self.lab, config, host=name, directory=directory, start_new_session=True
        ).serve()

    def _start_engines(self, name: str) -> None:
        host, fleet = self.lab[name], self.engines.fleet(name)
        frr = Frr(host, rendered("announce", "frr.conf.j2", _announce_frr=announce(fleet, name)["frr"]))
        self.frr.append(frr)
        frr.start()
        directory = self.directory / name
        healthy = f"{sys.executable} -I -S {self.archive} healthy --socket {directory}/forwarder/admin.sock"
        variables = {"_virtual_ip_health": healthy, "virtual_ip_hold_time": HOLD}
        ours = directory / "l4proxy.conf"
        derived = virtual_ips(fleet, name)["virtual_ips"]
        ours.write_text(rendered("virtual_ip", "l4proxy.conf.j2", _virtual_ips=derived, **variables), encoding="ascii")
        (directory / "keepalived.conf").write_text(MAIN.format(ours), encoding="ascii")
        pids = [part for kind in "pcr" for part in (f"-{kind}", str(directory / f"{kind}.pid"))]
        host.spawn(
            ["keepalived", "--dont-fork", "--log-console", "-f", str(directory / "keepalived.conf"), *pids],
            start_new_session=True,
        )

    def close(self) -> None:
        """Stop what does not end with the lab."""
        self.end()
        for frr in (*self.frr, self.router):
            frr.stop()

    # --- what is done to a proxy ---

    def stop_forwarder(self, name: str) -> None:
        stop(self.forwarders[name].process)

    def hang(self, name: str, number: int = signal.SIGSTOP) -> None:
        for pid in self.forwarders[name].workers():
            os.kill(pid, number)

    def go_on(self, name: str) -> None:
        self.hang(name, signal.SIGCONT)

    def divert(self, name: str, verb: str = "add") -> None:
        """Let a rule of another tool send the backends' replies away. The keeper leaves it alone."""
        for flag in FLAG.values():
            self.lab[name].run(["ip", flag, "rule", verb, "pref", "1", "lookup", "main"])

    def undivert(self, name: str) -> None:
        self.divert(name, "del")

    def tell(self, name: str, op: str) -> None:
        """Send ``withdraw`` or ``rejoin``."""
        assert self.forwarders[name].ask(op)["ok"]

    def verdicts(self) -> str:
        return "".join(f"{name}: {one.ask('healthy')}\n" for name, one in self.forwarders.items())
