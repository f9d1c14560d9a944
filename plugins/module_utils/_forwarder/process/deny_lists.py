# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is banned: by operators, and by the files of the config. The supervisor makes one table of each for the workers.

The table of operators' bans is small and made at once. That of the files is made by a child process, when a file has
changed and stays the same for a second. Workers get a table when it changes; a message that is lost is sent again.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import selectors
import time
from functools import partial
from typing import Any

from ..admin import runtime_file
from ..admission import deny_table
from ..admission.deny_table import BITS, FOREVER, Table
from ..loop import own_addresses
from . import children, deny_files, kernel_bans
from .ban_records import MOST_BANS, Ban, Key, checked_key, key_of, overlap, shown
from .channel import TooLarge
from .denied_clients import protected
from .generation import Generations
from .supervisor_loop import SupervisorLoop
from .worker_pool import WorkerPool

INTERVAL = 1.0  # seconds between two looks at the files, and at workers that lack a table
MOST_SHOWN = 20  # other bans in an answer
START_WAIT = 1.0  # seconds that a start waits for the files
FAILED_STATE = RETRY = (-1,)  # differ from all others, so that it is tried again
FAILED = "the process that reads the files has ended without a result"


class DenyLists:
    """All bans. ``files`` is {path: {"networks", "loaded_at", "error"}}."""

    def __init__(self, loop: SupervisorLoop, generations: Generations, pool: WorkerPool, owner: Any):
        self._loop = loop
        self._generations = generations
        self._pool = pool
        self._owner = owner
        self.bans: dict[Key, Ban] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, Table] = {}  # "bans" and "files", as far as they have anything
        self._published: tuple = ()  # what the file for the keeper has been made of
        self._seen: dict[str, tuple] = {}  # the identity of each file at the last look,
        self._read: dict[str, tuple] = {}  # and when it was read
        self._copies: dict[str, int] = {}  # memfds with the last good texts
        self._building: dict[str, Any] = {}  # while a child reads: its pipe, output and memfds

    # -- bans of operators -----------------------------------------------------------------------------------------

    def deny(self, network: str, service: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """Ban a network as the request ``wanted`` says; raise ValueError, a sentence."""
        key = checked_key(network, service)
        self._refuse_protected(network)
        self._forget_expired()
        now, before, seconds = int(time.time()), self.bans.get(key), wanted.get("seconds")
        ban = Ban(now + seconds if seconds else FOREVER, wanted.get("reason", ""), now)
        if before and seconds and before.expires != FOREVER and wanted.get("renew") is False:
            ban = Ban(before.expires, ban.reason, now)
        if not before and len(self.bans) >= MOST_BANS:
            raise ValueError(
                f"there are {MOST_BANS} bans, the most there can be; put networks into a file of deny_files"
            )
        changed = before is None or before[:2] != ban[:2]
        answer = {"changed": changed, "network": deny_table.show(*key[1:]), "before": shown(before), **shown(ban)}
        if changed and not wanted.get("check"):
            self.bans[key] = ban
            self._publish_bans()
            self._log("client banned", answer["network"], service, **shown(ban))
        return answer

    def allow(self, network: str, service: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """Lift a ban; raise ValueError, a sentence."""
        key = checked_key(network, service)
        self._forget_expired()
        before = self.bans.get(key)
        answer = {"changed": before is not None, "network": deny_table.show(*key[1:]), "before": shown(before)}
        if before and not wanted.get("check"):
            del self.bans[key]
            self._publish_bans()
            self._log("ban lifted", answer["network"], service)
        lifted = ipaddress.ip_network(answer["network"])
        others = [one for one in self.records() if one[:2] != [service or "", answer["network"]]]
        others = [one for one in others if overlap(lifted, ipaddress.ip_network(one[1]))]
        return {**answer, "remaining": [[record[1], record[0] or None] for record in others[:MOST_SHOWN]]}

    def _log(self, event, network, service, **fields):
        self._loop.log.event(event, level="warning", network=network, service=service or "all", **fields)

    def _refuse_protected(self, network):
        """Raise ValueError if a network has an address that can never be banned."""
        config = self._generations.live.config
        wanted = ipaddress.ip_network(deny_table.show(*deny_table.parse(network)))
        never: dict[str, str] = dict.fromkeys(own_addresses.own_addresses(), "an address of this host")
        never.update(dict.fromkeys(protected(config) if config else (), "a backend, a proxy or in never_ban"))
        for one, what in never.items():
            if overlap(wanted, ipaddress.ip_network(one)):
                contains = "it" if ipaddress.ip_network(one) == wanted else one
                raise ValueError(f"{network} cannot be banned: {contains} is {what}; ban networks without it")

    def records(self) -> list[list[Any]]:
        """Return the bans of operators as JSON: [service, network, expires or null, reason, since]."""
        now = time.time()
        return [
            [service, deny_table.show(family, first, length), end, ban.reason, ban.since]
            for (service, family, first, length), ban in self.bans.items()
            for end in [None if ban.expires == FOREVER else ban.expires]
            if ban.expires > now
        ]

    def adopt(self, records: list[list[Any]]):
        """Take over the records() of a state file."""
        self._restore(records)
        self._publish_bans()

    def _restore(self, records):
        for service, network, expires, reason, since in records:
            self.bans[key_of(service, network)] = Ban(expires or FOREVER, reason, since)

    def _forget_expired(self):
        now = time.time()
        for key in [key for key, ban in self.bans.items() if ban.expires <= now]:
            del self.bans[key]

    def _publish_bans(self):
        scopes: dict[str, dict[str, list[int]]] = {}
        for (service, family, first, length), ban in self.bans.items():
            lists = scopes.setdefault(service, {each: [] for each in BITS})
            lists[family].append(deny_table.key(first, length, ban.expires))
        memory = _memory("bans")
        deny_table.write(scopes, memory)
        self._use("bans", memory)

    # -- tables ----------------------------------------------------------------------------------------------------

    def _use(self, name, memory):
        """Give the workers another table; a table without entries is none."""
        table, before = Table(memory), self.tables.pop(name, None)
        if len(table):
            self.tables[name] = table
        else:
            table.close()
            table.unmap()
        self._pool.denied = self._pool.denied[0] + 1, tuple(self.tables.values())
        if before:
            before.close()
            before.unmap()
        self._deliver()
        self.publish()

    def _deliver(self):
        """Send the tables to the workers that do not have them."""
        numbers = [table.fd for table in self.tables.values()]
        for child in self._pool.children.values():
            if child.role == children.WORKER and child.denied != self._pool.denied[0]:
                try:
                    sent = child.channel.send({"denied": self._pool.denied[0]}, numbers)
                except TooLarge:  # not with so short a message
                    sent = False
                child.denied = self._pool.denied[0] if sent else child.denied

    def publish(self):
        """Tell the keeper who is banned, if that has changed and the kernel forwards a service."""
        live = self._generations.live
        config = live.config if live else None
        if config is None:
            return
        in_kernel = any(service.in_kernel for service in config.services)
        never = tuple(protected(config)) if in_kernel else ()
        state = (self._pool.denied[0], in_kernel, never)
        if state == self._published:
            return
        holes = [*never, *own_addresses.own_addresses()]
        found, too_long = kernel_bans.document(self.tables, holes) if in_kernel else ({}, [])
        path = os.path.join(runtime_file.directory(), kernel_bans.NAME)
        try:
            kernel_bans.write(path, found)
        except OSError as error:
            if self._published != FAILED_STATE:
                self._loop.log.event("bans not published", level="error", reason=str(error))
            self._published = FAILED_STATE
            return
        self._published = state
        if too_long:
            reason = f"more than {kernel_bans.MOST_RANGES} ranges"
            self._loop.log.event("bans left out of the kernel", level="error", lists=too_long, reason=reason)

    def descriptors(self) -> list[int]:
        """Return all file descriptors, which forked children must close."""
        building = [value for key, value in self._building.items() if key in ("pipe", "table")]
        return [*self.kept(), *building, *self._building.get("new", {}).values()]

    def kept(self) -> list[int]:
        """Return the file descriptors in state()."""
        return [*(table.fd for table in self.tables.values()), *self._copies.values()]

    def state(self) -> dict[str, Any]:
        """Return everything as JSON for the next program."""
        tables = {name: table.fd for name, table in self.tables.items()}
        pending = self._building.get("new", ())  # the next program begins anew
        read = {path: found for path, found in self._read.items() if path not in pending}
        return {"bans": self.records(), "tables": tables, "copies": self._copies, "read": read, "files": self.files}

    def take_over(self, state: dict[str, Any]):
        """Take over the state() of the previous program; {}: it was one that had none."""
        self.tables = {name: Table(number) for name, number in state.get("tables", {}).items()}
        # Another number than the workers have, who get them again: the last message may have been lost.
        self._pool.denied = len(self.tables), tuple(self.tables.values())
        self._copies, self.files = state.get("copies", {}), state.get("files", {})
        for number in self._copies.values():
            os.set_inheritable(number, False)
        self._read = {path: tuple(found) for path, found in state.get("read", {}).items()}
        self._seen = dict(self._read)
        self._restore(state.get("bans", ()))

    # -- files -----------------------------------------------------------------------------------------------------

    def check(self):
        """Once a second: read the files that have changed, and repeat messages."""
        self._loop.call_later(INTERVAL, self.check)
        self._deliver()
        self.publish()
        live = self._generations.live
        if live and live.config and not self._building:
            self.look(live.config.deny_files or ())

    def look(self, paths: tuple[str, ...]):
        """Begin to read the files if one has changed and is complete, or if the config has others."""
        seen = {path: deny_files.identity(path) for path in paths}
        # A file that somebody is writing changes from one look to the next. The first time is a start.
        settled = {path for path in paths if path not in self._read or seen[path] == self._seen.get(path)}
        changed = [path for path in paths if seen[path] != self._read.get(path) and path in settled]
        self._seen = seen
        gone = self._read.keys() - set(paths)
        if not (changed or gone):
            return
        self._read.update((path, seen[path]) for path in changed)
        new = {path: _memory("deny-file") for path in changed}
        self._building = {
            "new": new,
            "table": _memory("denied"),
            "output": b"",
            "began": self._loop.now(),
            "gone": gone,
        }
        jobs = [(path, self._copies.get(path), new.get(path)) for path in paths]
        kept = {*self._copies.values(), *new.values(), self._building["table"]}
        closed = [number for number in self._owner.inherited_descriptors() if number not in kept]
        try:
            pipe = children.spawn_writer(closed, partial(deny_files.build, jobs, self._building["table"]))
        except OSError as error:
            self._built({"failure": f"no process can be started: {error.strerror}"})
            return
        self._building["pipe"] = pipe
        self._loop.selector.register(pipe, selectors.EVENT_READ, self._receive)

    def start(self, paths: tuple[str, ...]):
        """Read the files, and wait up to START_WAIT seconds, because no worker serves yet."""
        self.look(paths)
        end = self._loop.now() + START_WAIT
        while "pipe" in self._building and self._loop.now() < end:
            if select.select([self._building["pipe"]], [], [], max(0.0, end - self._loop.now()))[0]:
                self._receive()

    def _receive(self):
        pipe = self._building["pipe"]
        data = os.read(pipe, 65536)
        self._building["output"] += data
        if not data:
            self._loop.selector.unregister(pipe)
            os.close(pipe)
            self._built(json.loads(self._building["output"] or "{}"))

    def _built(self, result):
        """Use what a child has built; a file that is wrong keeps its copy. Without a result, it is tried again."""
        building, self._building = self._building, {}
        complete, files = "intervals" in result, result.get("files", {})
        for path, memory in building["new"].items():
            error = files[path].get("error") if complete else result.get("failure", FAILED)
            if error:
                os.close(memory)
            else:
                self._forget(path)
                self._copies[path] = memory
            if not complete:
                self._read[path] = RETRY
            self._note(path, error, files.get(path, {}))
        if not complete:
            os.close(building["table"])
            return
        for path in building["gone"]:
            self._forget(path)
            del self._read[path]
            self.files.pop(path, None)
        self._use("files", building["table"])
        seconds = round(self._loop.now() - building["began"], 3)
        self._loop.log.event("deny files loaded", intervals=result["intervals"], seconds=seconds)

    def _forget(self, path):
        if path in self._copies:
            os.close(self._copies.pop(path))

    def _note(self, path, error, result):
        before = self.files.get(path, {})
        known = result.get("networks", before.get("networks", 0))
        loaded_at = before.get("loaded_at") if error else runtime_file.timestamp()
        self.files[path] = {"networks": known, "loaded_at": loaded_at, "error": error or None}
        if error and error != before.get("error"):
            self._loop.log.event("deny file not loaded", level="error", path=path, reason=error, kept_networks=known)
        elif before.get("error") and not error:
            self._loop.log.event("deny file usable again", path=path, networks=known)

    # -- views -----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the status document shows."""
        bans = sum(ban.expires > time.time() for ban in self.bans.values())
        files = {path: dict(found) for path, found in self.files.items()}
        return {"bans": bans, "networks": sum(one["networks"] for one in files.values()), "files": files}

    def listed(self) -> dict[str, Any]:
        """Return all bans of operators, and the files."""
        now = time.time()
        bans = [
            {
                "network": network,
                "service": service or None,
                "expires": expires and runtime_file.timestamp(expires),
                "seconds_left": expires and max(0, round(expires - now)),
                "reason": reason,
                "since": runtime_file.timestamp(since),
            }
            for service, network, expires, reason, since in self.records()
        ]
        return {"bans": bans, "files": self.files}


def _memory(name):
    return os.memfd_create(f"l4proxy-{name}", os.MFD_CLOEXEC)
