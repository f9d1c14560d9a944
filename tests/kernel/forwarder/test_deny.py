# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans: who is refused, which open sessions end, and what they outlive. Every other client is the control."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.modules import forwarder_deny

from tests.kernel.forwarder.service_manager import ServiceManager, alive, kill, kill_all
from tests.kernel.forwarder.sessions import CLIENTS, Refused, Session, each_once
from tests.support import udp
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

ONE, TWO, SEPARATE = 7600, 7601, 7610  # the last one is of forwarders that one test has
NETWORK = {"ipv4": "198.18.128.{}/{}", "ipv6": "2001:db8:2:8000::{:x}/{}"}
BITS = {"ipv4": 32, "ipv6": 128}
FORGED = "198.18.128.7"


def document(lab, ports=(ONE, TWO), **options):
    """A service for each protocol on ONE and TWO: their names are tcp1, udp1, tcp2 and udp2."""
    served = [
        make_service(lab, f"{protocol}{number}", port, 9000, protocol=protocol, idle_timeout=600)
        for number, port in enumerate(ports, 1)
        for protocol in ("tcp", "udp")
    ]
    return make_config(*served, workers=2, **options)


@pytest.fixture(autouse=True)
def lifted(request):
    yield
    if "forwarder" in request.fixturenames:
        forwarder = request.getfixturevalue("forwarder")
        for ban in forwarder.ask("denied")["bans"]:
            forwarder.ask("allow", network=ban["network"], service=ban["service"])


@pytest.fixture
def session(lab, session_servers, protocol, family):
    """A function that opens a session of a client, by its number; it ends with the test."""
    opened = []

    def start(number, port=ONE):
        to = (getattr(lab["a"], family), port)
        opened.append(Session(lab, protocol, to, CLIENTS[family].format(number), patience=udp.QUIET))
        return opened[-1]

    yield start
    for one in opened:
        one.end()


def is_refused(session, *arguments):
    try:
        session(*arguments)
    except Refused:
        return True
    return False


def network(family, number, length=None):
    return NETWORK[family].format(number, length or BITS[family])


def ask(forwarder, op, **arguments):
    answer = forwarder.ask(op, **arguments)
    assert answer["ok"], answer
    return answer


def counters(forwarder, name):
    return {one["name"]: one[name] for one in forwarder.status()["services"] if one[name]}


def has_ended(forwarder, session, protocol):
    if protocol == "tcp":
        return session.is_reset()
    return "client address is banned" in [line["ended"] for line in forwarder.log("session")]


def test_a_ban_refuses_new_clients_and_ends_open_sessions(forwarder, session, protocol, family):
    banned, control, elsewhere = session(5), session(6), session(5, TWO)
    before = {name: counters(forwarder, name).get(f"{protocol}1", 0) for name in ("refused_denied", "ended_denied")}
    answer = ask(forwarder, "deny", network=network(family, 5), service=f"{protocol}1", reason="too often")
    began = time.monotonic()
    assert (answer["changed"], answer["network"], answer["expires"]) == (True, CLIENTS[family].format(5), None)
    eventually(lambda: has_ended(forwarder, banned, protocol), "its session ends", forwarder.show)
    assert time.monotonic() - began < 2
    assert is_refused(session, 5)
    control.go_on()
    elsewhere.go_on()
    assert [is_refused(session, *one) for one in ((6,), (5, TWO))] == [False, False], "the control"
    assert not ask(forwarder, "deny", network=network(family, 5), service=f"{protocol}1", reason="too often")["changed"]
    after = {name: counters(forwarder, name)[f"{protocol}1"] for name in before}
    assert after["ended_denied"] == before["ended_denied"] + 1
    assert after["refused_denied"] > before["refused_denied"]
    assert forwarder.status()["denied"]["bans"] == 1
    (listed,) = ask(forwarder, "denied")["bans"]
    assert (listed["service"], listed["reason"], listed["seconds_left"]) == (f"{protocol}1", "too often", None)
    ask(forwarder, "allow", network=network(family, 5), service=f"{protocol}1")
    assert not is_refused(session, 5)
    # A network, at all services.
    ask(forwarder, "deny", network=network(family, 0, BITS[family] - 6))
    eventually(lambda: elsewhere.is_reset() if protocol == "tcp" else is_refused(session, 5, TWO))
    assert [is_refused(session, *one) for one in ((5,), (63, TWO), (64,), (64, TWO))] == [True, True, False, False]


@each_once
def test_a_ban_ends_in_the_second_that_it_says(forwarder, session, family):
    answer = ask(forwarder, "deny", network=network(family, 5), seconds=2)
    (listed,) = ask(forwarder, "denied")["bans"]
    end = time.mktime(time.strptime(answer["expires"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert is_refused(session, 5)
    assert 1 <= listed["seconds_left"] <= 2
    # Another ban of a smaller network does not shorten it.
    ask(forwarder, "deny", network=network(family, 0, BITS[family] - 6), seconds=1)
    time.sleep(max(0.0, end - time.time() - 0.7))
    assert is_refused(session, 5) or time.time() >= end
    time.sleep(max(0.0, end - time.time()))
    assert not is_refused(session, 5)
    assert ask(forwarder, "denied")["bans"] == []


TEST_REFUSED = [
    ("0.0.0.0/0", None, "'0.0.0.0/0' is every address; remove the service, or its listeners, to serve nobody"),
    ("192.0.2.1/24", None, "'192.0.2.1/24' has host bits set; 192.0.2.0/24 has not"),
    ("192.0.2.0/33", None, "'192.0.2.0/33' has no prefix length from 0 to 32"),
    ("client", None, "'client' is neither an address nor a network, such as 192.0.2.0/24"),
    ("{b}", None, "{b} cannot be banned: it is a backend, a proxy or in never_ban; ban networks without it"),
    (
        "::ffff:{b}",
        None,
        "::ffff:{b} cannot be banned: it is a backend, a proxy or in never_ban; ban networks without it",
    ),
    ("{a}", None, "{a} cannot be banned: it is an address of this host; ban networks without it"),
    ("198.18.0.0/17", None, "198.18.0.0/17 cannot be banned: {any} is"),
    ("192.0.2.1", "mail", "there is no service 'mail' (there are tcp1, udp1, tcp2, udp2)"),
]


@pytest.mark.ipv4_only
@pytest.mark.parametrize(("wanted", "service", "sentence"), TEST_REFUSED)
def test_what_cannot_be_banned_is_refused(lab, forwarder, wanted, service, sentence):
    addresses = {"a": lab["a"].ipv4, "b": lab["b"].ipv4, "any": ""}
    answer = forwarder.ask("deny", network=wanted.format(**addresses), service=service)
    assert not answer["ok"]
    expected = sentence.format(**addresses)
    assert answer["error"] == expected or all(part in answer["error"] for part in expected.split(" is")), answer
    assert ask(forwarder, "denied")["bans"] == []


@pytest.mark.ipv4_only
def test_the_commands_and_the_module(lab, forwarder, capsys):
    socket = str(forwarder.directory / "admin.sock")

    def cli(*arguments):
        return lab.l4proxy("a", [*arguments, "--socket", socket])

    def module(**params):
        given = {"network": "192.0.2.0/24", "socket": socket, **params}
        with patch_module_args(given), pytest.raises(SystemExit):
            forwarder_deny.main()
        return json.loads(capsys.readouterr().out)

    planned = module(duration="1h", reason="scans", _ansible_check_mode=True)
    assert (planned["changed"], ask(forwarder, "denied")["bans"]) == (True, [])
    done = module(duration="1h", reason="scans")
    assert done["diff"]["before"] == ""
    assert done["diff"]["after"].startswith("192.0.2.0/24 at all services until 2")
    assert not module(duration="1h", reason="scans")["changed"]
    assert module(duration="2h", reason="scans", renew=True)["changed"]
    assert "192.0.2.0/24  all      2 h" in cli("denied").stdout.replace("119 min", "2 h")
    assert json.loads(cli("denied", "--json").stdout)["bans"][0]["reason"] == "scans"
    assert "is banned until" in cli("deny", "192.0.2.7", "--for", "15m", "--service", "tcp1").stdout
    usage = cli("deny", "192.0.2.7", "--for", "soon")
    assert (usage.returncode, "'soon' is not a duration" in usage.stderr) == (2, True)
    assert cli("deny", lab["b"].ipv4).returncode == 1
    lifted = cli("allow", "192.0.2.0/24")
    assert (lifted.stdout, lifted.stderr) == (
        "192.0.2.0/24 is allowed again\n",
        "still banned: 192.0.2.7 at service tcp1\n",
    )
    assert not module(state="absent")["changed"]
    assert "failed" in module(network=lab["b"].ipv4)


@pytest.fixture
def start(lab, tmp_path):
    """Start forwarders as a service manager does, the next one after the other."""
    started = []
    with closing(ServiceManager(lab.tmp / f"{tmp_path.name}.notify")) as manager:
        manager.state = Path(tempfile.mkdtemp(prefix="state-", dir=lab.tmp))

        def begin(served, before=None):
            started.append(manager.start(lab, served, before.directory if before else None).serve())
            if not before:
                manager.listen_until("READY")
            return started[-1]

        begin.manager = manager
        yield begin
    for forwarder in started:
        kill(alive([forwarder.process.pid, *forwarder.workers()] if forwarder.process.poll() is None else []))


@each_once
def test_bans_outlive_reloads_restarts_and_kill(lab, session, start, family):
    feed = start.manager.state / "feed"
    feed.write_text(network(family, 7) + "\n", encoding="ascii")
    served = document(lab, [SEPARATE], deny_files=[str(feed)])

    def check():
        assert [is_refused(session, number, SEPARATE) for number in (5, 7, 6)] == [True, True, False]

    forwarder = start(served)
    ask(forwarder, "deny", network=network(family, 5))
    assert json.loads((start.manager.state / "state.json").read_text())["denied"][0][0] == ""
    check()
    feed.write_text("not valid\n", encoding="ascii")
    eventually(lambda: forwarder.log("deny file not loaded"), "it is seen", forwarder.show)
    for options in ({"drain_timeout": 5}, {"workers": 3}):  # in place, and by new processes
        forwarder.configure({**served, **options})
        assert forwarder.reload().returncode == 0, forwarder.show()
        check()
    kill([one["pid"] for one in forwarder.status()["workers"] if one["state"] == "serving"][:1])
    eventually(lambda: len(forwarder.log("worker to be replaced")) == 1, "a worker has ended", forwarder.show)
    check()
    forwarder.process.send_signal(signal.SIGUSR1)  # a restart: the workers stay
    start.manager.listen_until_end(forwarder.process)
    check()
    forwarder = start({**served, "workers": 3}, forwarder)
    check()
    feed.write_text(network(family, 7) + "\n", encoding="ascii")  # no process is left that knows the earlier text
    kill_all(forwarder)
    forwarder.process.wait(PATIENCE)
    start({**served, "workers": 3}, forwarder)
    check()


def file_status(forwarder, path):
    return forwarder.status()["denied"]["files"][str(path)]


@pytest.mark.ipv4_only
@pytest.mark.parametrize("protocol", ["tcp"])
@pytest.mark.parametrize("family", ["ipv4"])
def test_files_are_read_anew_and_a_bad_one_keeps_its_list(lab, session, protocol, family):
    directory = Path(tempfile.mkdtemp(prefix="deny-", dir=lab.tmp))
    good, other = directory / "good", directory / "other"
    good.write_text("# comment\n198.18.128.5 ; reason\n\n2001:db8:2:8000::/64\n", encoding="ascii")
    other.write_text("198.18.128.8/29\n", encoding="ascii")
    served = document(lab, [SEPARATE], deny_files=[str(good), str(other)], never_ban=["198.18.128.9"])
    with Forwarder(lab, served) as forwarder:

        def refused():
            return [number for number in (5, 6, 8, 9, 15, 16) if is_refused(session, number, SEPARATE)]

        assert refused() == [5, 8, 15]
        open_session = session(6, SEPARATE)
        for text, error in (
            (b"198.18.128.6\n198.18.128.300\n", "line 2"),
            (b"\xff\n", "not ASCII"),
            (None, "No such file"),
        ):
            good.unlink()
            if text:
                good.write_bytes(text)
            eventually(lambda: error in (file_status(forwarder, good)["error"] or ""), "an error", forwarder.show)  # noqa: B023
            assert refused() == [5, 8, 15]
        good.write_text("198.18.128.6\n", encoding="ascii")
        eventually(lambda: refused() == [6, 8, 15], "the new list", forwarder.show)
        eventually(open_session.is_reset, "an open session of a client in the new list ends", forwarder.show)
        status = forwarder.status()["denied"]
        assert (status["networks"], status["files"][str(good)]["error"]) == (2, None)
        assert ask(forwarder, "deny", network="192.0.2.1", service="udp1")["changed"]
        left = document(lab, [SEPARATE], deny_files=[str(other)])
        left["services"].pop()
        forwarder.configure(left)
        assert forwarder.reload().returncode == 0
        eventually(lambda: refused() == [8, 9, 15], "never_ban and a file have gone", forwarder.show)
        assert not forwarder.ask("deny", network="192.0.2.2", service="udp1")["ok"]
        lifted = ask(forwarder, "allow", network="192.0.2.1", service="udp1")
        assert lifted["changed"], "also of a service that has gone"
