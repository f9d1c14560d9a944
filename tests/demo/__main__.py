# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: raise the lab, run the real playbooks against it, and show what the backends logged."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import ansible
from tests.lab.containers import ContainerLab

PREFIX = "demo"
BACKENDS = ("b", "c", "d")
INVENTORY = Path(__file__).with_name("inventory.yml")
WEB_SERVERS = ansible.REPOSITORY / "tests" / "lab" / "playbooks" / "web_servers.yml"
LOG = ansible.REPOSITORY / ".build" / "demo.log"
ACCESS_LOG = "/var/log/nginx/access.log"

#: Two rounds a family at the least, and what is enough for as many workers as a machine may have.
REQUESTS, MOST_REQUESTS = 2 * len(BACKENDS), 100

NEXT = """
What to try next:
  make demo-shell HOST=a        look at the proxy: l4proxy probe --source 198.51.100.9 198.18.0.21:8080
  make demo-shell HOST=b        look at a backend: ip rule; nft list ruleset; tail /var/log/nginx/access.log
  make demo-down                remove it all
"""


class DemoError(RuntimeError):
    """A step did not do what it is there to show; the message says what was seen."""


def step(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m", flush=True)


def say(text: str) -> None:
    print(f"    {text}", flush=True)


def play(playbook: str) -> dict[str, dict[str, int]]:
    """Run one playbook; show the names of its plays while it works, keep everything else in the log."""
    command = ansible.command(playbook, [INVENTORY])
    env = {**ansible.environment(PREFIX), "ANSIBLE_NOCOLOR": "true"}
    lines: list[str] = []
    with (
        LOG.open("a", encoding="utf-8") as log,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            lines.append(line)
            if found := re.match(r"PLAY \[(.*)\]", line):
                say(found[1])
    if process.returncode:
        raise DemoError("".join(lines[-30:]))
    return ansible.parse_recap("".join(lines))


def request(lab: ContainerLab, url: str) -> str:
    """Send one request from the client and return the answer: the name of the backend that gave it."""
    return lab["client"].run(["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url]).stdout.strip()


def ask_everybody(lab: ContainerLab, url: str) -> list[str]:
    """Send requests until every backend has answered (each worker goes round by itself); return who did."""
    answers: list[str] = []
    while len(answers) < REQUESTS or (set(answers) != set(BACKENDS) and len(answers) < MOST_REQUESTS):
        answers.append(request(lab, url))
    return answers


def show_requests(lab: ContainerLab) -> None:
    """Send the requests and print, for each backend and family, what its own log says."""
    proxy, client = lab["a"], lab["client"]
    for url in (f"http://{proxy.ipv4}/", f"http://[{proxy.ipv6}]/"):
        answers = ask_everybody(lab, url)
        say(f"{len(answers)} requests to {url} were answered by {' '.join(answers)}")
    print()
    for name in BACKENDS:
        logged = lab[name].run(["cat", ACCESS_LOG]).stdout.splitlines()
        for address in (client.ipv4, client.ipv6):
            mine = [line for line in logged if line.split()[0] == address]
            if not mine:
                raise DemoError(f"{name} logged no request of {address}; its log: {logged}")
            say(f"{name} saw {address:<15} : {mine[-1]}")
        others = [line for line in logged if line.split()[0] in (proxy.ipv4, proxy.ipv6)]
        if others:
            raise DemoError(f"{name} saw the proxy instead of the client: {others}")


def show_verify() -> None:
    """Run the verify playbook and print what it saw."""
    play("trueip.l4proxy.verify")
    for sentence in re.findall(r'"(\w+: \w+: established[^"]*)"', LOG.read_text(encoding="utf-8")):
        say(sentence)


def show_second_run() -> None:
    """Run site again and see that it changes nothing."""
    recap = play("trueip.l4proxy.site")
    changed = sum(counts["changed"] for counts in recap.values())
    say(f"changed={changed} on {', '.join(recap)}")
    if changed:
        raise DemoError(f"the second run changed something: {recap}; see {LOG}")


def main() -> int:
    """Run the demo.

    :returns: 0, or 1 after saying which step failed and how to look.
    """
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    started = time.monotonic()
    lab = ContainerLab(PREFIX, report=say)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("Raise the lab: client, router, proxy a, backends b, c and d, all Debian with systemd", lab.up),
        ("Start an ordinary web server on each backend", lambda: play(str(WEB_SERVERS))),
        (
            "Deploy: ansible-playbook -i tests/demo/inventory.yml trueip.l4proxy.site",
            lambda: play("trueip.l4proxy.site"),
        ),
        ("Send requests from the client through a, and read the backends' own logs", lambda: show_requests(lab)),
        ("Prove it: ansible-playbook trueip.l4proxy.verify", show_verify),
        ("Deploy once more: nothing is left to do", show_second_run),
    ]
    for text, action in steps:
        step(text)
        try:
            action()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"\n{error}\n\nThis step failed: {text}", file=sys.stderr)
            print(f"How to look: less {LOG}; make demo-shell HOST=a; make demo-down removes it all", file=sys.stderr)
            return 1
    print(f"\n\033[1mdone in {time.monotonic() - started:.0f} s\033[0m\n{NEXT}", end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
