# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks as iptables rules: rendering and reading back. tests/kernel tests them on a host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark, Observed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import RoutingError
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import iptables, iptables_listing
from hypothesis import given
from hypothesis import strategies as st

from .mark_data import MARKS, mark_sets

OWNER = "return_path"
COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
# What iptables-nft and iptables-legacy, 1.8.9 and 1.8.11, save after MARKS were written, beside a foreign rule.
SAVED = {
    family: Path(__file__).with_name(f"{command}_save.txt").read_text(encoding="utf-8")
    for family, command in COMMANDS.items()
}


def observe(texts: dict[str, str], owner: str = OWNER) -> Observed:
    return iptables.observe(owner, {family: iptables_listing.parse(text) for family, text in texts.items()})


def as_saved(owner: str, marks: tuple[Mark, ...], family: str) -> str:
    """What iptables-save would list of these marks on a host that has nothing else."""
    chains = iptables.render(owner, marks, family)
    hooks = [(hook, f"_{end}") for hook, end in iptables_listing.HOOKS.items()]
    jumps = [f"-A {hook} -j {chain}" for hook, end in hooks for chain in chains if chain.endswith(end)]
    rules = [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
    return "\n".join(["*mangle", *(f":{chain} - [0:0]" for chain in chains), *jumps, *rules, "COMMIT", ""])


def test_the_recorded_listings_are_read_back_as_written():
    assert observe(SAVED) == Observed(MARKS, True)


owners = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)


@given(owners, mark_sets)
def test_rendered_marks_are_read_back_unchanged(owner, marks):
    assert observe({family: as_saved(owner, marks, family) for family in COMMANDS}, owner) == Observed(marks, True)


@given(owners)
def test_chain_names_are_short_enough(owner):
    """XT_EXTENSION_MAXNAMELEN, without its terminating zero."""
    assert all(len(chain) <= 28 for chain in iptables.render(owner, MARKS, "ipv4"))


def test_without_marks_there_are_no_chains_and_the_script_is_empty():
    assert iptables.render(OWNER, (), "ipv4") == {}
    assert observe({"ipv4": "", "ipv6": ""}) == Observed((), True)
    assert iptables.script(OWNER, iptables_listing.Listing(), {}) == ""


def test_every_rule_matches_first_and_sets_under_the_mask():
    for family in COMMANDS:
        for chain, rules in iptables.render(OWNER, MARKS, family).items():
            for rule in rules:
                assert rule.startswith(("-m ", "-i ", "-p ", "! -o ")), (chain, rule)
                assert "restore-mark" not in rule
                assert all(mask == "0xff" for mask in re.findall(r"--set-xmark 0x[0-9a-f]+/(\S+)", rule))


def test_guards_exist_only_in_families_in_which_the_proxy_has_an_address():
    for family, drops in (("ipv4", 4), ("ipv6", 1)):
        chains = iptables.render(OWNER, MARKS, family)
        assert len(chains["L4PROXY_RETURN_PATH_POST"]) == drops


def test_the_script_replaces_existing_chains():
    script = iptables.script(OWNER, iptables_listing.parse(SAVED["ipv4"]), iptables.render(OWNER, MARKS[5:], "ipv4"))
    lines = script.splitlines()
    assert (lines[0], lines[-1]) == ("*mangle", "COMMIT")
    assert lines.index("-D INPUT -j L4PROXY_RETURN_PATH_IN") < lines.index("-X L4PROXY_RETURN_PATH_IN")
    assert [line for line in lines if line.startswith("-I")] == ["-I PREROUTING 1 -j L4PROXY_RETURN_PATH_PRE"]
    assert "--dport 1" not in script


def gone(pattern: str):
    return lambda text: re.sub(rf"(?m)^{pattern}.*\n", "", text)


def put(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


ONE = "-A L4PROXY_RETURN_PATH_IN -m mac --mac-source 02:00:00:00:00:11"
DAMAGE = {
    "all rules gone": gone("-A"),
    "everything gone": gone("[:-]"),
    "a rule gone": gone(re.escape(ONE)),
    "a chain emptied": gone("-A L4PROXY_RETURN_PATH_OUT"),
    "a chain gone": gone(":L4PROXY_RETURN_PATH_MEMO|-A L4PROXY_RETURN_PATH_MEMO"),
    "a rule more": put("COMMIT", "-A L4PROXY_RETURN_PATH_POST -j ACCEPT\nCOMMIT"),
    "a jump gone": gone("-A FORWARD -j L4PROXY"),
    "a jump twice": put("-A FORWARD -j L4PROXY_RETURN_PATH_FWD\n", "-A FORWARD -j L4PROXY_RETURN_PATH_FWD\n" * 2),
    "a jump with a condition": put("-A INPUT -j L4", "-A INPUT -p tcp -j L4"),
    "a jump in another chain": put("-A INPUT -j L4PROXY", "-A FORWARD -j L4PROXY"),
    "another rule first": put("-A INPUT", "-A INPUT -j ACCEPT\n-A INPUT"),
    "another mark": put("--set-xmark 0xb/0xff", "--set-xmark 0xc/0xff"),
    "another mask": put("--set-xmark 0xb/0xff", "--set-xmark 0xb/0xffffffff"),
    "another sender": put("02:00:00:00:00:11 -m conntrack", "02:00:00:00:00:aa -m conntrack"),
    "another verdict": put("-j DROP", "-j ACCEPT"),
    "a condition turned round": put("-m mark ! --mark", "-m mark --mark"),
    "a condition more": put(ONE, f"{ONE} -p tcp"),
    "another name in the memo": put("0xb/0xff name a", "0xb/0xff name b"),
}


@pytest.mark.parametrize("family", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_changed_chains_are_not_sound(damage, family):
    damaged = damage(SAVED[family])
    assert damaged != SAVED[family]
    assert observe({**SAVED, family: damaged}) != Observed(MARKS, True)


def test_reordered_rules_are_not_sound():
    lines = SAVED["ipv4"].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(ONE))
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    assert not observe({**SAVED, "ipv4": "\n".join(lines)}).sound


SAME = {
    "counters": lambda text: re.sub(r"\[0:0\]", "[7:420]", text),
    "options in another order": put(
        "-m mac --mac-source 02:00:00:00:00:11 -m conntrack --ctdir ORIGINAL",
        "-m conntrack --ctdir ORIGINAL -m mac --mac-source 02:00:00:00:00:11",
    ),
    "quotes": put("--comment a -j", '--comment "a" -j'),
    "another owner's jump first": put("-A INPUT", "-A INPUT -j L4PROXY_PACKET_MARK_IN\n-A INPUT"),
    "others' rules after ours": put("--dport 1 -j ACCEPT", "--dport 2 -j DROP"),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_equivalent_listings_are_sound(change):
    changed = change(SAVED["ipv4"])
    assert observe({**SAVED, "ipv4": changed}) == Observed(MARKS, True)


@pytest.mark.parametrize(("one", "other"), [
    ("-m mac --mac-source 02:00:00:00:00:AA -j DROP", "-m mac --mac-source 02:00:00:00:00:aa -j DROP"),
    ("-m mark --mark 0xb/0xffffffff", "-m mark --mark 0xb"),
    ("! -o eth0 -m mark --mark 0xb", "-m mark --mark 0xb ! -o eth0"),
])  # fmt: skip
def test_a_rule_has_one_meaning_in_every_version(one, other):
    assert iptables_listing.meaning(one) == iptables_listing.meaning(other)


class Commands:
    """A runner whose commands return the recorded listings, except those in ``failures``."""

    def __init__(self, **failures: str):
        self.failures, self.calls = failures, []

    def __call__(self, argv, stdin=None):
        self.calls.append((list(argv), stdin))
        name = argv[0].replace("-", "_")
        if name in self.failures:
            return Completed(1, "", self.failures[name])
        return Completed(0, SAVED["ipv6" if argv[0].startswith("ip6") else "ipv4"] if "save" in name else "", "")


def test_each_family_is_written_in_one_commit():
    run = Commands()
    iptables.IpTables(run).write(OWNER, MARKS)
    restored = [(argv, stdin) for argv, stdin in run.calls if "restore" in argv[0]]
    commands = [[f"{command}-restore", "--noflush", "-w", "10"] for command in COMMANDS.values()]
    assert [argv for argv, _stdin in restored] == commands
    assert all(stdin.count("COMMIT") == 1 for _argv, stdin in restored)


def test_the_first_family_is_restored_if_the_second_one_fails():
    run = Commands(ip6tables_restore="ip6tables-restore: line 4 failed\n")
    with pytest.raises(RoutingError, match="ip6tables-restore --noflush -w 10: ip6tables-restore: line 4 failed"):
        iptables.IpTables(run).write(OWNER, ())
    scripts = [stdin for argv, stdin in run.calls if argv[0] == "iptables-restore"]
    assert len(scripts) == 2
    assert ONE not in scripts[0]
    assert ONE in scripts[1]


def test_a_memo_distinguishes_one_id_with_and_without_conntrack():
    tracked = Mark("a", 11, 255, (), ("198.18.0.11",))
    each = Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",), conntrack=False)
    lines = [line for mark in (tracked, each) for line in iptables_listing.memo(mark)]
    rules = [f'-m comment --comment "{line}"' for line in lines]
    assert list(iptables_listing.marks(rules)) == [tracked, each]
