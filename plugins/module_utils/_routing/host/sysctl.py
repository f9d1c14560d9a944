# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel settings, and the value each had before our first change, to be restored when no owner wants it any more.

The memory is a file: {"schema": 1, "sysctls": {NAME: {"found": "1", "owners": {"return_path": "0"}}}}.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ..._shared.paths import SYSCTL_MEMORY
from ..document.model import OF_CONNTRACK, Setting, Sysctl, sysctl_value
from ..errors import NotReady, Refused
from . import files

PROC = "/proc/sys"
SCHEMA = 1
# A setting is a few numbers; the kernel gives them at one go.
LONGEST = 4096


def file_of(name: str, proc: str = PROC) -> str:
    """``net.ipv4.conf.eth0/100.rp_filter`` → /proc/sys/net/ipv4/conf/eth0.100/rp_filter"""
    return os.path.join(proc, name.translate(str.maketrans("./", "/.")))


class Sysctls:
    """Reads and writes settings of the calling thread's network namespace."""

    def __init__(self, memory: str = SYSCTL_MEMORY, proc: str = PROC):
        self._memory, self._proc = memory, proc

    def read(self, owner: str, wanted: tuple[Sysctl, ...]) -> tuple[Setting, ...]:
        """The settings that an owner wants or holds.

        NotReady for one that does not exist (yet), but for those that marks bring along; Refused for one that another
        owner holds at another value.
        """
        remembered = self._remembered()
        held = [name for name, entry in remembered.items() if owner in entry["owners"]]
        values = {sysctl.name: sysctl.value for sysctl in wanted}
        found = {name: self.value(name) for name in sorted({*values, *held})}
        settings, quarrels = [], []
        for name, current in found.items():
            entry = remembered.get(name, {"found": current, "owners": {}})
            quarrels += _quarrels(name, owner, values.get(name), entry["owners"])
            settings.append(_setting(name, current, owner, entry))
        if quarrels:
            raise Refused(quarrels)
        absent = self._absent(wanted, found)
        if absent:
            raise NotReady(list(absent.values()))
        return tuple(settings)

    def absent(self, wanted: tuple[Sysctl, ...]) -> dict[str, str]:
        """Those that do not exist (yet), with a sentence."""
        return self._absent(wanted, {sysctl.name: self.value(sysctl.name) for sysctl in wanted})

    def _absent(self, wanted: tuple[Sysctl, ...], found: dict[str, str | None]) -> dict[str, str]:
        active = [sysctl.name for sysctl in wanted if not (sysctl.retiring or sysctl.name.startswith(OF_CONNTRACK))]
        missing = [name for name in active if found[name] is None]
        return {name: f"sysctl {name} does not exist ({file_of(name, self._proc)})" for name in missing}

    def hold(self, owner: str, sysctl: Sysctl) -> None:
        """Set a value for an owner. Remembered before it is written, so that a crash between loses nothing."""
        remembered = self._remembered()
        entry = remembered.setdefault(sysctl.name, {"found": self.value(sysctl.name), "owners": {}})
        entry["owners"][owner] = sysctl.value
        self._remember(remembered)
        self._write(sysctl.name, sysctl.value)

    def release(self, owner: str, setting: Setting) -> None:
        """Give a value up: restored when nobody else holds it and nobody else has changed it."""
        if setting.restore is not None and self.value(setting.name) is not None:
            self._write(setting.name, setting.restore)
        remembered = self._remembered()
        entry = remembered.get(setting.name)
        if entry:
            entry["owners"].pop(owner, None)
            if not entry["owners"]:
                del remembered[setting.name]
            self._remember(remembered)

    def held_by(self, owner: str) -> list[str]:
        """The names of the settings that an owner holds."""
        return [name for name, entry in self._remembered().items() if owner in entry["owners"]]

    def memory(self) -> str | None:
        """What is remembered, to be given to ``rewind``."""
        return files.read(self._memory)

    def rewind(self, before: Setting, memory: str | None) -> None:
        """Back to a setting and a memory as they were read."""
        if before.value:
            self._write(before.name, before.value)
        if memory is None:
            files.remove(self._memory)
        else:
            files.write(self._memory, memory)

    def flush_redirects(self, name: str) -> None:
        """Forget what ICMP redirects have taught about IPv4 routes, as ``ip route flush cache`` does (ip-sysctl)."""
        if name.startswith("net.ipv4."):
            self._write("net.ipv4.route.flush", "-1")

    def value(self, name: str) -> str | None:
        """The kernel's value now, None when there is no such setting."""
        try:
            # The keeper asks every second: without Python's file object it is a third of the price.
            descriptor = os.open(file_of(name, self._proc), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return sysctl_value(os.read(descriptor, LONGEST).decode("ascii"))
        finally:
            os.close(descriptor)

    def _write(self, name: str, value: str) -> None:
        with open(file_of(name, self._proc), "w", encoding="ascii") as file:
            file.write(value)

    def _remembered(self) -> dict[str, Any]:
        content = files.read(self._memory)
        if content is None:
            return {}
        try:
            data = json.loads(content)
            if data["schema"] != SCHEMA:
                raise Refused([f"{self._memory} has schema {data['schema']!r}, expected {SCHEMA}: update l4proxy"])
            return dict(data["sysctls"])
        except (ValueError, KeyError, TypeError) as error:
            raise Refused([f"{self._memory} is invalid ({error}); check it, then remove it"]) from error

    def _remember(self, sysctls: dict[str, Any]) -> None:
        if sysctls:
            data = {"schema": SCHEMA, "sysctls": sysctls}
            files.write(self._memory, json.dumps(data, indent=2, sort_keys=True) + "\n")
        else:
            files.remove(self._memory)


def _quarrels(name: str, owner: str, value: str | None, owners: dict[str, str]) -> list[str]:
    return [
        f"sysctl {name}: {owner} wants {value}, but {other} holds it at {theirs}"
        for other, theirs in owners.items()
        if other != owner and value not in (None, theirs)
    ]


def _setting(name: str, current: str | None, owner: str, entry: dict[str, Any]) -> Setting:
    """``restore`` is set when giving it up would change it: we alone hold it, and it still is what we wrote."""
    owners = entry["owners"]
    alone = set(owners) == {owner} and current is not None and owners[owner] == current
    return Setting(name, current or "", owner in owners, entry["found"] if alone else None)
