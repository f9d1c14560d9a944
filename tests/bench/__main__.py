# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: the forwarder and its peers, interleaved in one run; a table, tests/output/bench.json and a picture.

QUICK=1 measures less and for a shorter time; ONLY=PATTERN measures the works whose names match a regular expression;
ROUNDS=7 measures each work that often.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.bench import debian13, report
from tests.bench import peers as table
from tests.bench.bench_lab import BenchLab, raise_lab
from tests.bench.measure import Figure, Sample, figures
from tests.bench.peers import Peer, Running
from tests.bench.works import WORKS, Work
from tests.gates import environments

#: Rounds of a measurement, and how many more it gets when their spread is too wide to be told from the machine's mood.
ROUNDS, MORE_ROUNDS, WIDEST = 3, 2, 0.25
SECONDS, QUICK_SECONDS, QUICK_ROUNDS = 2.0, 1.0, 2
#: What the spread is judged by.
JUDGED = ("rate", "cpu_per_unit", "rss")


class NotServed(RuntimeError):
    """A peer has no listener on the port that a work needs."""


def chosen(quick: bool, pattern: str) -> list[Work]:
    """Return the works of this run; raise ValueError if there are none."""
    try:
        found = [work for work in WORKS if (work.quick or not quick) and re.search(pattern, work.name)]
    except re.error as error:
        raise ValueError(f"ONLY={pattern!r} is not a regular expression: {error}") from None
    if not found:
        names = ", ".join(work.name for work in WORKS if work.quick or not quick)
        raise ValueError(f"no work matches ONLY={pattern!r}; there are {names}")
    return found


def entrants(work: Work, quick: bool = False) -> list[Peer]:
    """Return the peers that can do a work."""
    everyone = work.quick and not quick
    proxies = [peer for peer in (*table.PEERS, *table.more()) if everyone or peer.best]
    ends = table.ENDS if work.ends else ()
    return [peer for peer in (*proxies, *ends) if peer.udp or not work.setting.udp]


def one_round(lab: BenchLab, work: Work, peer: Peer, seconds: float) -> Sample:
    """Start a peer, measure it, stop it."""
    lab.forget()
    with tempfile.TemporaryDirectory(dir=lab.tmp) as directory:
        running = peer.start(lab, Path(directory), work.setting)
        try:
            _wait_until_it_forwards(lab, peer, running)
            if not peer.complete and not running.listens(work.port):
                raise NotServed(f"it does not listen on port {work.port}")
            return work.run(lab, peer, running, seconds)
        finally:
            running.stop()


def _wait_until_it_forwards(lab: BenchLab, peer: Peer, running: Running) -> None:
    url = f"http://{lab[peer.host].ipv4}:{table.HTTP}/"
    deadline = time.monotonic() + 20
    while lab["client"].run(["curl", "-s", "-m", "1", "-o", "/dev/null", url], check=False).returncode:
        if running.ended() or time.monotonic() > deadline:
            raise RuntimeError(f"{peer.name} does not forward: {running.said()[-2000:]}")


def measure(lab: BenchLab, work: Work, quick: bool) -> tuple[dict[str, dict[str, Figure]], dict[str, Exception]]:
    """Measure a work on all peers in several rounds; if the rounds of one differ too much, all get more rounds.

    Return the figures by peer, and why there are none of some: one that fails takes nothing from the others.
    """
    seconds, rounds = (QUICK_SECONDS, QUICK_ROUNDS) if quick else (SECONDS, ROUNDS)
    rounds = int(os.environ.get("ROUNDS") or rounds)
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in entrants(work, quick)}
    failed: dict[str, Exception] = {}
    lab.offload(work.offload)
    for number in range(rounds + MORE_ROUNDS):
        if number >= rounds and not _disturbed(samples.values()):
            break
        for peer in entrants(work, quick):
            if peer.name in failed:
                continue
            try:
                samples[peer.name].append(one_round(lab, work, peer, seconds))
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed[peer.name] = error
                del samples[peer.name]
    return {name: figures(found) for name, found in samples.items()}, failed


def _disturbed(samples: Iterable[list[Sample]]) -> bool:
    judged = [figures(found) for found in samples]
    return any(found[name].spread > WIDEST for found in judged for name in JUDGED if name in found)


def versions() -> dict[str, str]:
    """Return the conditions of the measurement: machine, versions and settings."""

    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).splitlines()[0]

    return {
        "kernel": platform.release(),
        "cpus": str(os.cpu_count()),
        "python": first_line("/usr/bin/python3", "--version"),
        "haproxy": first_line("haproxy", "-v"),
        "nginx": first_line("nginx", "-v"),
        "haproxy-3.0": first_line(*debian13.command("haproxy"), "-v"),
        "nginx-1.26": first_line(*debian13.command("nginx"), "-v"),
        "wrk": first_line("wrk", "-v"),
        "iperf3": first_line("iperf3", "--version"),
    }


def main() -> int:
    """Measure and report."""
    quick, pattern = bool(os.environ.get("QUICK")), os.environ.get("ONLY", "")
    started = time.monotonic()
    results, failures = {}, []
    try:  # before the measurement
        works, more = chosen(quick, pattern), table.more()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    debian13.ensure()
    python, site = environments.ensure("bench")  # draws the picture; fails now if it cannot be installed
    with raise_lab() as lab:
        for work in works:
            results[work.name], failed = measure(lab, work, quick)
            print(report.table(work, results[work.name]), flush=True)
            for name, error in failed.items():
                left_out = isinstance(error, NotServed)
                print(f"  {name} {'is left out' if left_out else 'FAILED'}: {error}\n", file=sys.stderr, flush=True)
                failures += [] if left_out else [f"{work.name} by {name}"]
    settings = {peer.name: peer.settings for peer in (*table.PEERS, *more, *table.ENDS)}
    print(report.cards(results))
    path = report.write(results, {**versions(), "settings": settings, "quick": quick})
    picture = path.with_suffix(".svg")
    command = [str(python), str(Path(__file__).with_name("picture.py")), str(path), str(picture)]
    subprocess.run(command, check=True, env=environments.variables(site))
    print(f"{time.monotonic() - started:.0f} s; written to {path} and {picture}")
    if failures:
        print(f"not measured: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
