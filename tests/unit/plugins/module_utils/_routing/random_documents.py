# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documents drawn at random from a small universe, so that two of them often meet in a key: for fake and real hosts.

Everything in it is possible on host b of the lab, and on FakeHost.
"""

from __future__ import annotations

from hypothesis import strategies as st

FAMILIES = ("ipv4", "ipv6")
VIAS = {"ipv4": ("198.18.0.11", "198.18.0.12"), "ipv6": ("2001:db8::11",)}
PREFIXES = {"ipv4": ("198.18.0.99/32", "198.18.0.0/24"), "ipv6": ("2001:db8::99/128", "2001:db8::/64")}
SECOND = {"ipv4": "198.18.0.121", "ipv6": "2001:db8::121"}
TABLES = (20100, 20101)
REDIRECTS = "net.ipv4.conf.all.accept_redirects"


def some(**choices) -> st.SearchStrategy:
    """A dict with each key left out, or one of its choices."""
    optional = {name: st.sampled_from(values) for name, values in choices.items()}
    return st.fixed_dictionaries({}, optional=optional)


def rules() -> st.SearchStrategy:
    return st.sampled_from(FAMILIES).flatmap(_rules)


def _rules(family: str) -> st.SearchStrategy:
    actions = [{"action": "lookup", "table": table} for table in TABLES]
    actions += [{"action": "lookup", "table": 20100, "suppress_prefixlength": 0}]
    actions += [{"action": action} for action in ("unreachable", "prohibit", "blackhole")]
    selectors = some(
        src=PREFIXES[family], dst=PREFIXES[family], iif=("lo", "eth0"), oif=("eth0",), fwmark=(11, 12),
        uid_range=("0-99",),
    )  # fmt: skip
    transport = st.sampled_from([{}, {"ip_proto": "tcp"}, {"ip_proto": "udp", "sport": "53-60"}])
    found = st.tuples(st.sampled_from((1100, 1101)), st.sampled_from(actions), selectors, transport)
    made = found.map(lambda parts: {"family": family, "priority": parts[0], **parts[1], **parts[2], **parts[3]})
    return made.filter(_is_for_some)


def _is_for_some(rule: dict) -> bool:
    """A rule for all that the host sends would send the engine's own question for a next hop to that rule's table."""
    return bool({"src", "fwmark", "ip_proto"} & set(rule)) or rule.get("iif") == "eth0"


def routes() -> st.SearchStrategy:
    return st.sampled_from(FAMILIES).flatmap(_routes)


def _routes(family: str) -> st.SearchStrategy:
    hops = [{"via": via} for via in VIAS[family]]
    hops += [{"via": VIAS[family][0], "mtu": 1400}, {"via": VIAS[family][0], "src": SECOND[family]}, {"dev": "eth0"}]
    hops += [{"type": kind} for kind in ("local", "unreachable", "prohibit", "blackhole")]
    place = st.tuples(st.sampled_from(TABLES), st.sampled_from(("default", PREFIXES[family][1])))
    found = st.tuples(place, st.sampled_from(hops), some(metric=(7,))).map(
        lambda parts: {"family": family, "table": parts[0][0], "dst": parts[0][1], **parts[1], **parts[2]}
    )
    # With a local default route, most of these rules would cut the host off and be refused.
    return found.filter(lambda route: (route.get("type"), route["dst"]) != ("local", "default"))


def marks() -> st.SearchStrategy:
    found = [
        {"name": name, "id": number, "mask": 255, "mac": f"02:00:00:00:00:{number}", "via": [f"{net}{number}"]}
        for name, number in (("a", 11), ("a2", 12))
        for net in ("198.18.0.", "2001:db8::")
    ]
    return st.sampled_from(found)


def settings() -> st.SearchStrategy:
    return st.sampled_from(("0", "1")).map(lambda value: {"name": REDIRECTS, "value": value})


def _route_key(route: dict) -> tuple:
    return route["family"], route["table"], route["dst"], route.get("metric")


def _rule_key(rule: dict) -> tuple:
    deeds = ("action", "table", "suppress_prefixlength")
    return tuple(sorted((name, str(value)) for name, value in rule.items() if name not in deeds))


@st.composite
def any_document(draw) -> dict:
    """A document that can be applied: no key twice, and each source address is on the host."""
    drawn = {
        "rules": draw(st.lists(rules(), max_size=6, unique_by=_rule_key)),
        "routes": draw(st.lists(routes(), max_size=5, unique_by=_route_key)),
        "marks": draw(st.lists(marks(), max_size=2, unique_by=lambda mark: mark["id"])),
        "sysctls": draw(st.lists(settings(), max_size=1)),
    }
    needed = {route["family"] for route in drawn["routes"] if "src" in route}
    given = needed | set(draw(st.lists(st.sampled_from(FAMILIES), max_size=2)))
    drawn["addresses"] = [{"family": family, "address": SECOND[family], "dev": "eth0"} for family in sorted(given)]
    return {"schema": 1, "owner": "return_path", "protocol": 202, **drawn}
