# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Set sysctls, and restore the value from before our first change when no owner holds them any more.

These values are in a file: {"schema": 1, "sysctls": {NAME: {"found": "1", "owners": {"return_path": "0"}}}}.
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
# A sysctl is a few numbers; one read returns them.
MAX_LENGTH = 4096


def file_of(name: str, proc: str = PROC) -> str:
    """``net.ipv4.conf.eth0/100.rp_filter`` -> /proc/sys/net/ipv4/conf/eth0.100/rp_filter"""
    return os.path.join(proc, name.translate(str.maketrans("./", "/.")))


class Sysctls:
    """Reads and writes the sysctls of the calling thread's network namespace."""

    def __init__(self, memory: str = SYSCTL_MEMORY, proc: str = PROC):
        self._memory, self._proc = memory, proc

    def read(self, owner: str, desired: tuple[Sysctl, ...]) -> tuple[Setting, ...]:
        """The sysctls that an owner desires or holds, as they are now.

        NotReady if one does not exist (yet), except those that marks load; Refused if another owner holds one at a
        different value.
        """
        remembered = self._remembered()
        held = [name for name, entry in remembered.items() if owner in entry["owners"]]
        values = {sysctl.name: sysctl.value for sysctl in desired}
        actual = {name: self.value(name) for name in sorted({*values, *held})}
        settings, conflicts = [], []
        for name, current in actual.items():
            entry = remembered.get(name, {"found": current, "owners": {}})
            conflicts += _conflicts(name, owner, values.get(name), entry["owners"])
            settings.append(_setting(name, current, owner, entry))
        if conflicts:
            raise Refused(conflicts)
        absent = self._absent(desired, actual)
        if absent:
            raise NotReady(list(absent.values()))
        return tuple(settings)

    def absent(self, desired: tuple[Sysctl, ...]) -> dict[str, str]:
        """The names of sysctls that do not exist (yet), with a sentence about each."""
        return self._absent(desired, {sysctl.name: self.value(sysctl.name) for sysctl in desired})

    def _absent(self, desired: tuple[Sysctl, ...], actual: dict[str, str | None]) -> dict[str, str]:
        active = [sysctl.name for sysctl in desired if not (sysctl.retiring or sysctl.name.startswith(OF_CONNTRACK))]
        missing = [name for name in active if actual[name] is None]
        return {name: f"sysctl {name} does not exist ({file_of(name, self._proc)})" for name in missing}

    def hold(self, owner: str, sysctl: Sysctl) -> None:
        """Set a value for an owner. The old value is stored first, so that a crash in between does not lose it."""
        remembered = self._remembered()
        entry = remembered.setdefault(sysctl.name, {"found": self.value(sysctl.name), "owners": {}})
        entry["owners"][owner] = sysctl.value
        self._remember(remembered)
        self._set(sysctl.name, sysctl.value)

    def release(self, owner: str, setting: Setting) -> None:
        """Release a sysctl; restore its value unless someone else has changed it.

        If another owner holds it, it gets that value: releasing another sysctl may have changed it (``forwarding``).
        """
        remembered = self._remembered()
        values = remembered.get(setting.name, {"owners": {}})["owners"]
        value = next((theirs for other, theirs in values.items() if other != owner), setting.restore)
        if value is not None and self.value(setting.name) is not None:
            self._set(setting.name, value)
        if setting.name in remembered:
            values.pop(owner, None)
            if not values:
                del remembered[setting.name]
            self._remember(remembered)

    def held_by(self, owner: str) -> list[str]:
        """The names of the sysctls that an owner holds."""
        return [name for name, entry in self._remembered().items() if owner in entry["owners"]]

    def before(self, owner: str, name: str) -> str | None:
        """The value of a sysctl before our first change, None if there is no such sysctl.

        If another owner holds it, the value that this owner has chosen.
        """
        entry = self._remembered().get(name)
        if entry is None:
            return self.value(name)
        found: str | None = next((value for other, value in entry["owners"].items() if other != owner), entry["found"])
        return found

    def links(self, family: str) -> list[str]:
        """The interfaces with sysctls of a family, as names of sysctls spell them; ``default`` is for future ones."""
        try:
            names = os.listdir(file_of(f"net.{family}.conf", self._proc))
        except FileNotFoundError:
            return []
        return sorted(name.replace(".", "/") for name in names if name != "all")

    def memory(self) -> str | None:
        """The content of the file, for ``rewind``."""
        return files.read(self._memory)

    def rewind(self, before: Setting, memory: str | None) -> None:
        """Restore a sysctl and the file as they were before."""
        if before.value:
            self._set(before.name, before.value)
        if memory is None:
            files.remove(self._memory)
        else:
            files.write(self._memory, memory)

    def flush_redirects(self, name: str) -> None:
        """Drop IPv4 routes that were learnt from ICMP redirects, as ``ip route flush cache`` does (ip-sysctl)."""
        if name.startswith("net.ipv4."):
            self._write("net.ipv4.route.flush", "-1")

    def value(self, name: str) -> str | None:
        """The current value, None if there is no such sysctl."""
        try:
            # The keeper reads this every second; without Python's file object it costs a third.
            descriptor = os.open(file_of(name, self._proc), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return sysctl_value(os.read(descriptor, MAX_LENGTH).decode("ascii"))
        finally:
            os.close(descriptor)

    def _set(self, name: str, value: str) -> None:
        """Write a value that differs: to write all.forwarding again sets every interface, and drops default routes."""
        if self.value(name) != value:
            self._write(name, value)

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
            raise Refused([f"{self._memory} cannot be parsed ({error}); check it, then remove it"]) from error

    def _remember(self, sysctls: dict[str, Any]) -> None:
        if sysctls:
            data = {"schema": SCHEMA, "sysctls": sysctls}
            files.write(self._memory, json.dumps(data, indent=2, sort_keys=True) + "\n")
        else:
            files.remove(self._memory)


def _conflicts(name: str, owner: str, value: str | None, owners: dict[str, str]) -> list[str]:
    return [
        f"sysctl {name}: {owner} needs {value}, but {other} holds it at {theirs}"
        for other, theirs in owners.items()
        if other != owner and value not in (None, theirs)
    ]


def _setting(name: str, current: str | None, owner: str, entry: dict[str, Any]) -> Setting:
    """``restore`` is set only if a release changes the value: no other owner holds it, and it is what we wrote."""
    owners = entry["owners"]
    alone = set(owners) == {owner} and current is not None and owners[owner] == current
    return Setting(name, current or "", owner in owners, entry["found"] if alone else None)
