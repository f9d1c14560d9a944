# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks in nftables, iptables-nft and iptables-legacy: they read back as written, and damage is repaired."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark, Observed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import runner
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import selection

from tests.support.marking import NFT, VARIANTS, Marked, Variant, marked
from tests.support.routing import return_path

HOSTS = ["a", "a2", "b"]

OWNER = "return_path"
SETS = {
    "by MAC": (Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11", "2001:db8::11")),),
    "MAC not known": (Mark("a", 11, 255, (), ("198.18.0.11",)),),
    "two of each": (Mark("a.b-c", 11, 255, ("02:00:00:00:00:1a", "02:00:00:00:00:1b"), ("198.18.0.1", "198.18.0.2")),),
    "named by an address": (Mark("2001:db8::11", 11, 255, ("02:00:00:00:00:11",), ("2001:db8::11",)),),
    "no guard": (Mark("a", 11, 255, ("02:00:00:00:00:11",)),),
    "by interface": (Mark("a", 11, 255, iif="eth0.100"),),
    "each packet": (Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",), conntrack=False),),
    "each packet, MAC not known": (Mark("a", 11, 255, (), ("198.18.0.11",), conntrack=False),),
    "last senders": (
        Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11", "2001:db8::11"), oif="eth0",
             last_sender=("tcp/80", "tcp/443", "udp/53")),
        Mark("a2", 12, 255, ("02:00:00:00:00:12",), ("198.18.0.12",), oif="eth1", last_sender=("tcp/80",)),
        Mark("a3", 13, 255, (), ("198.18.0.13",), last_sender=("udp/53",)),
        Mark("a4", 14, 255, ("02:00:00:00:00:14",), ("198.18.0.14",), last_sender=("tcp/80",), conntrack=False),
    ),
    "sockets": (Mark("sockets", 1, 255, transparent=True),),
    "all bits": (Mark("a", 0xFFFFFFFF, 0xFFFFFFFF, ("02:00:00:00:00:11",), ("198.18.0.11",)),),
    "the mask itself": (Mark("a", 255, 255, ("02:00:00:00:00:11",), ("198.18.0.11",)),),
    "a hole in the mask": (Mark("a", 0x8001, 0xF00F, ("02:00:00:00:00:11",)), Mark("b", 0x1000, 0xF00F, iif="eth1")),
    "all kinds": (
        Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11", "2001:db8::11")),
        Mark("a2", 12, 255, (), ("198.18.0.12",)),
        Mark("up", 13, 255, iif="eth1", via=("2001:db8::13",)),
        Mark("a4", 14, 255, ("02:00:00:00:00:14",), ("198.18.0.14",), conntrack=False),
        Mark("wan", 15, 255, iif="ppp0", conntrack=False),
        Mark("sockets", 1, 255, transparent=True),
    ),
}  # fmt: skip


@pytest.fixture(params=VARIANTS, ids=str)
def b(lab, request):
    with marked(lab, "b", request.param) as host:
        yield host


def expected(made: Marked, values: tuple[Mark, ...]) -> Observed:
    # nft matches next hops, so its guards need no interface.
    written = [replace(mark, oif=None) if made.variant == NFT else mark for mark in values]
    return Observed(tuple(sorted(written, key=lambda mark: mark.order)), True, made.variant.engine)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_marks_read_back_as_written(b, values):
    b.write(values)
    assert b.read() == expected(b, values)


def some_marks(draw: random.Random) -> tuple[Mark, ...]:
    mask = draw.choice([0xFF, 0xFF00, 0xFFFFFFFF, 0x80000001, draw.randrange(1, 2**32)])
    bits = [1 << shift for shift in range(32) if mask >> shift & 1]
    ids = {sum(draw.sample(bits, draw.randint(1, len(bits)))) for _one in range(4)}
    found = []
    for index, number in enumerate(sorted(ids)):
        kind = draw.choice(["mac", "silent", "iif", "transparent"])
        via = draw.sample(["198.18.0.7", "198.18.0.8", "2001:db8::7", "2001:db8::8"], draw.randint(kind == "silent", 4))
        via = tuple(f"{address}{index}" for address in via)
        macs = tuple(f"02:00:00:00:{index:02x}:{one:02x}" for one in range(draw.randint(1, 2)))
        matches = {"mac": {"macs": macs}, "silent": {}, "iif": {"iif": f"eth{index}"}, "transparent": {}}[kind]
        if kind == "transparent":
            found.append(Mark(f"p{index}", number, mask, transparent=True))
        else:
            found.append(Mark(f"p{index}", number, mask, via=via, conntrack=draw.random() < 0.7, **matches))
    return tuple(found)


@pytest.mark.parametrize("seed", range(4))
def test_random_marks_read_back_as_written(b, seed):
    values = some_marks(random.Random(seed))
    b.write(values)
    assert b.read() == expected(b, values)


# --- damage

NFT_DAMAGE = [
    "nft flush ruleset",
    "nft delete table inet l4proxy_return_path",
    "nft insert rule inet l4proxy_return_path input accept",
    "nft insert rule inet l4proxy_return_path save_11 tcp dport 22 return",
    "nft flush chain inet l4proxy_return_path postrouting",
    "nft flush chain inet l4proxy_return_path forward",
    "nft flush chain inet l4proxy_return_path mark_11",
    "nft flush chain inet l4proxy_return_path guard_12",
    "nft add chain inet l4proxy_return_path more",
]
IPTABLES_DAMAGE = [
    "{} -t mangle -F",
    "{} -t mangle -F L4PROXY_RETURN_PATH_OUT",
    "{} -t mangle -F L4PROXY_RETURN_PATH_MEMO",
    "{} -t mangle -D L4PROXY_RETURN_PATH_FWD 1",
    "{} -t mangle -I L4PROXY_RETURN_PATH_POST 1 -p tcp -j RETURN",
    "{} -t mangle -R L4PROXY_RETURN_PATH_PRE 1 -m mark --mark 1 -j MARK --set-xmark 0xb/0xff",
    "{} -t mangle -D INPUT -j L4PROXY_RETURN_PATH_IN",
    "{} -t mangle -A INPUT -j L4PROXY_RETURN_PATH_IN",
    "{} -t mangle -I POSTROUTING 1 -p tcp -j ACCEPT",
]
DAMAGE = [
    *((NFT, command) for command in NFT_DAMAGE),
    *((variant, command.format("iptables")) for variant in VARIANTS[1:] for command in IPTABLES_DAMAGE),
    # The other family has the same code; these cases show that it is checked too.
    *((variant, command.format("ip6tables")) for variant in VARIANTS[1:] for command in IPTABLES_DAMAGE[:1]),
]


def document(lab) -> dict:
    return return_path(lab["a"], lab["a2"], mac=True)


@pytest.fixture(scope="module")
def whole(lab):
    """Marks that are applied once for each variant; tests damage and repair them."""
    made = {}

    def of(variant: Variant) -> Marked:
        for other, standing in list(made.items()):
            if other != variant:
                standing.remove(OWNER)
                del made[other]
        if variant not in made:
            made[variant] = Marked(lab, lab["b"], variant)
            made[variant].apply(document(lab))
        return made[variant]

    yield of
    for standing in made.values():
        standing.remove(OWNER)


@pytest.mark.parametrize(("variant", "command"), DAMAGE, ids=[f"{variant}: {command}" for variant, command in DAMAGE])
def test_damage_to_marks_is_detected_and_repaired(lab, whole, variant, command):
    b = whole(variant)
    sound = b.read()
    assert sound.sound
    b.run(command)
    assert b.read() != sound
    assert b.apply(document(lab)).changed
    assert b.read() == sound
    assert not b.apply(document(lab)).changed


def test_rules_out_of_order_are_detected(b):
    """Marks by MAC come before marks by interface; another order is reported."""
    b.write((Mark("a", 11, 255, ("02:00:00:00:00:11",)), Mark("up", 12, 255, iif="eth0")))
    assert b.read().sound
    if b.variant is NFT:
        (line,) = [line for line in b.run("nft -a list ruleset").splitlines() if "save_12" in line and "vmap" in line][
            :1
        ]
        b.run(f"nft delete rule inet l4proxy_return_path input handle {line.rpartition(' ')[2]}")
        rule = 'ct direction original ct mark and 0xff == 0 iifname vmap { "eth0" : goto save_12 }'
        b.run(f'nft insert rule inet l4proxy_return_path input {rule} comment "first-packet"')
    else:
        rule = next(line for line in b.variant.save(b.host) if line.startswith("-A L4PROXY_RETURN_PATH_IN -m mac"))
        b.run(f"iptables -t mangle {rule.replace('-A', '-D', 1)}")
        b.run(f"iptables -t mangle {rule}")
    assert not b.read().sound


def test_foreign_rules_in_the_same_chains_stay(lab, whole):
    for variant in VARIANTS[1:]:
        b = whole(variant)
        b.run("iptables -t mangle -I INPUT 1 -p tcp --dport 1 -j ACCEPT")
        b.run("iptables -t mangle -N OTHERS")
        b.apply(document(lab))
        listed = b.run("iptables -t mangle -S").splitlines()
        accept = "-A INPUT -p tcp -m tcp --dport 1 -j ACCEPT"
        assert listed.index("-A INPUT -j L4PROXY_RETURN_PATH_IN") < listed.index(accept)
        b.remove(OWNER)
        assert accept in b.run("iptables -t mangle -S").splitlines()
        b.run("iptables -t mangle -D INPUT -p tcp --dport 1 -j ACCEPT")
        b.run("iptables -t mangle -X OTHERS")
        b.apply(document(lab))


@pytest.mark.parametrize("command", ["iptables -t filter -F", "iptables -t nat -F", "nft delete table inet others"])
def test_flushing_foreign_tables_keeps_our_marks(lab, whole, command):
    for variant in VARIANTS:
        b = whole(variant)
        b.run("nft add table inet others")
        b.run(command)
        assert b.read().sound
        b.run("nft add table inet others")
        b.run("nft delete table inet others")


def test_two_owners_do_not_affect_each_other(b):
    one, other = (Mark("a", 11, 255, ("02:00:00:00:00:11",)),), (Mark("b", 1, 3, iif="eth7"),)
    b.write(one)
    b.write(other, "return")
    try:
        assert (b.read().marks, b.read("return").marks) == (one, other)
        assert b.read().sound
        assert b.read("return").sound
    finally:
        b.write((), "return")
    assert b.read() == expected(b, one)


# --- choosing an engine


def without(*programs: str, run=runner.run):
    def start(argv, stdin=None):
        if argv[0].partition("-")[0].replace("ip6", "ip") in programs:
            raise runner.MissingCommand(argv[0])
        return run(argv, stdin)

    return start


def use(lab, run, **options):
    """Apply on b with these commands, by default with mark_engine auto."""
    data = {**document(lab), **options.pop("data", {})}
    return lab.engine.apply(lab["b"], data, {"runner": run}, **options)


@pytest.fixture
def clean(lab):
    made = Marked(lab, lab["b"], VARIANTS[1])
    made.remove(OWNER)
    yield made
    made.remove(OWNER)


def test_mark_engine_auto_stays_with_iptables_when_nft_appears(lab, clean):
    use(lab, without("nft"))
    assert clean.read().engine == "iptables"
    assert not use(lab, runner.run).changed
    assert clean.read().engine == "iptables"


def test_a_change_of_mark_engine_moves_the_marks(lab, clean):
    use(lab, runner.run)
    assert clean.read().engine == "nftables"
    data = {"data": {"mark_engine": "iptables"}}
    foretold = use(lab, runner.run, check=True, **data)
    assert clean.read().engine == "nftables"
    done = use(lab, runner.run, **data)
    assert foretold == done
    assert any("replace the iptables chains of marks" in change for change in done.changes)
    assert (clean.read().engine, clean.read().sound) == ("iptables", True)
    assert "l4proxy_return_path" not in clean.run("nft list tables")
    assert any("cannot match a next hop" in warning for warning in done.warnings)
    assert not use(lab, runner.run, **data).changed


def test_marks_in_two_engines_are_not_sound(lab, clean):
    use(lab, runner.run)
    with clean.host.inside():
        selection.IpTables(runner.run).write(OWNER, clean.read().marks)
    assert not clean.read().sound
    use(lab, runner.run)
    assert (clean.read().engine, clean.read().sound) == ("nftables", True)
    assert clean.variant.save(clean.host) == []


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
def test_a_failure_in_one_family_keeps_the_other_unchanged(lab, whole, variant):
    def refuse(argv, stdin=None):
        if argv[0] == "ip6tables-restore":
            return runner.Completed(1, "", "no memory")
        return variant.run(argv, stdin)

    b = whole(variant)
    before = sorted(b.listing())
    with b.host.inside(), pytest.raises(errors.RoutingError, match=r"ip6tables-restore.*: no memory"):
        selection.write(refuse, OWNER, "iptables", (Mark("other", 9, 255, iif="eth9"),))
    assert sorted(b.listing()) == before
    assert b.read().sound
