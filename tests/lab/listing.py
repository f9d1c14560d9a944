# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything on a host that a role could change, as text that can be compared.

A listing is {section: [lines]}. One small shell script on the host takes it, so it needs nothing but what is there.
"""

from __future__ import annotations

from tests.lab.hosts import LabHost

#: One section a line: its name, then the command that lists it.
SECTIONS = {
    "rules": "ip -4 rule; ip -6 rule",
    "routes": "ip -4 route show table all; ip -6 route show table all",
    "nftables": "nft list ruleset",
    "iptables": "iptables-save -c | grep -v '^#'; ip6tables-save -c | grep -v '^#'",
    "sysctls": "sysctl -a --pattern '^net\\.' 2>/dev/null | grep -vE '%s'",
    "units": "systemctl list-unit-files --no-legend --no-pager",
    "running": "systemctl list-units --no-legend --no-pager --plain --type=service --state=running | cut -d' ' -f1",
    "files": (
        "find /etc /usr/local /var/lib /opt /root -xdev %s -prune -o "
        "\\( -type f -printf '%%M %%u:%%g %%s %%p\\n' -o -type l -printf '%%M %%u:%%g %%l %%p\\n' "
        "-o -printf '%%M %%u:%%g %%p\\n' \\) | sort -k 4"
    ),
    "contents": "find /etc /usr/local -xdev %s -prune -o -type f -print0 | sort -z | xargs -0 sha256sum",
    "accounts": "getent passwd; getent group",
    "packages": "dpkg-query -W",
    "runtime": "ls /run | sort",
}

#: Lines that change by themselves, or because of Ansible or systemd.
MOVING_SYSCTLS = (
    "nf_conntrack_count|nf_conntrack_max|nf_conntrack_buckets|\\.neigh\\.|netfilter\\.nf_log|random|fib_|tcp_mem"
)
MOVING_FILES = [
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/etc/mtab",
    "/root/.ansible",
    "/var/lib/systemd",
    "/var/lib/private",
    "/var/lib/nginx",
]

#: Traces of packages, which stay after a teardown.
OF_PACKAGES = ["/etc/alternatives", "/etc/ld.so.cache", "/var/lib/dpkg", "/var/lib/apt", "/var/lib/python"]


def _pruned(paths: list[str]) -> str:
    return "\\( " + " -o ".join(f"-path {path}" for path in paths) + " \\)"


def script(packages: bool) -> str:
    """The shell script that makes a listing, with or without packages and their traces."""
    left_out = MOVING_FILES if packages else MOVING_FILES + OF_PACKAGES
    lines = []
    for name, command in SECTIONS.items():
        if name == "packages" and not packages:
            continue
        argument = {"sysctls": MOVING_SYSCTLS, "files": _pruned(left_out), "contents": _pruned(left_out)}.get(name)
        lines.append(f"echo '=== {name}'; {{ {command % argument if argument else command}; }} 2>&1")
    return "\n".join(lines)


def take(host: LabHost, *, packages: bool) -> dict[str, list[str]]:
    """List a host."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in host.run(["/bin/sh", "-c", script(packages)], timeout=60, check=False).stdout.splitlines():
        if line.startswith("=== "):
            current = sections.setdefault(line[4:], [])
        else:
            current.append(line)
    return sections


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """The differences of two listings: ``section: + line`` or ``section: - line``."""
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, []), after.get(name, [])
        found += [f"{name}: - {line}" for line in old if line not in new]
        found += [f"{name}: + {line}" for line in new if line not in old]
    return found
