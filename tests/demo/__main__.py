# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: start the lab, run the playbooks of the collection on it, and show what the backends logged."""

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

#: At least two rounds in each family; at most enough requests for the workers of a large machine.
REQUESTS, MOST_REQUESTS = 2 * len(BACKENDS), 100

NEXT = """
What to try next:
  make demo-shell HOST=a        on the proxy: l4proxy status; l4proxy probe --source 198.51.100.9 198.18.0.21:8080
  make demo-shell HOST=b        on a backend: ip rule; nft list ruleset; tail /var/log/nginx/access.log
  make demo-down                remove the demo
"""


class DemoError(RuntimeError):
    """A step failed; the message says what was found."""


def step(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m", flush=True)


def say(text: str) -> None:
    print(f"    {text}", flush=True)


def play(playbook: str) -> dict[str, dict[str, int]]:
    """Run a playbook, show the names of its plays, write everything to the log; return the counts of each host."""
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
    """Send a request from the client; return the name of the backend that answered."""
    return lab["client"].run(["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url]).stdout.strip()


def ask_everybody(lab: ContainerLab, url: str) -> list[str]:
    """Send requests until every backend has answered (each worker has a round of its own); return their names."""
    answers: list[str] = []
    while len(answers) < REQUESTS or (set(answers) != set(BACKENDS) and len(answers) < MOST_REQUESTS):
        answers.append(request(lab, url))
    return answers


def show_requests(lab: ContainerLab) -> None:
    """Send the requests, and print the last line of each backend's log in each family."""
    proxy, client = lab["a"], lab["client"]
    for url in (f"http://{proxy.ipv4}/", f"http://[{proxy.ipv6}]/"):
        answers = ask_everybody(lab, url)
        say(f"{len(answers)} requests to {url}, answered by {' '.join(answers)}")
    print()
    for name in BACKENDS:
        logged = lab[name].run(["cat", ACCESS_LOG]).stdout.splitlines()
        for address in (client.ipv4, client.ipv6):
            mine = [line for line in logged if line.split()[0] == address]
            if not mine:
                raise DemoError(f"{name} logged no request from {address}; its log: {logged}")
            say(f"{name} saw {address:<15} : {mine[-1]}")
        others = [line for line in logged if line.split()[0] in (proxy.ipv4, proxy.ipv6)]
        if others:
            raise DemoError(f"{name} logged the proxy's address instead of the client's: {others}")


def show_verify() -> None:
    """Run the verify playbook and print its results."""
    play("trueip.l4proxy.verify")
    for sentence in re.findall(r'"(\w+: \w+: established[^"]*)"', LOG.read_text(encoding="utf-8")):
        say(sentence)


def show_second_run() -> None:
    """Run site again; it must change nothing."""
    recap = play("trueip.l4proxy.site")
    changed = sum(counts["changed"] for counts in recap.values())
    say(f"changed={changed} on {', '.join(recap)}")
    if changed:
        raise DemoError(f"the second run made changes: {recap}; see {LOG}")


def main() -> int:
    """Run the demo.

    :returns: 0, or 1 after printing which step failed and where to look.
    """
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    started = time.monotonic()
    lab = ContainerLab(PREFIX, report=say)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("Start the lab: a client, a router, proxy a, backends b, c and d (Debian with systemd)", lab.up),
        ("Start a web server on each backend", lambda: play(str(WEB_SERVERS))),
        (
            "Deploy: ansible-playbook -i tests/demo/inventory.yml trueip.l4proxy.site",
            lambda: play("trueip.l4proxy.site"),
        ),
        ("Send requests from the client to the proxy, then read the backends' access logs", lambda: show_requests(lab)),
        ("Verify: ansible-playbook -i tests/demo/inventory.yml trueip.l4proxy.verify", show_verify),
        ("Deploy again: nothing changes", show_second_run),
    ]
    for text, action in steps:
        step(text)
        try:
            action()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"\n{error}\n\nThis step failed: {text}", file=sys.stderr)
            print(
                f"Where to look: less {LOG}; make demo-shell HOST=a. To remove the demo: make demo-down",
                file=sys.stderr,
            )
            return 1
    print(f"\n\033[1mDone in {time.monotonic() - started:.0f} s\033[0m\n{NEXT}", end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
