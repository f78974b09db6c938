"""The filter's text, whole; and that its changes are what they should be."""

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from banger.network.filter import (
    Pin,
    close_networks,
    closed_networks,
    pin,
    pins_of,
    ruleset,
    unpin,
)
from banger.network.plan import NetworkPlan

PLAN = NetworkPlan()
ONE = Pin("tap0", "02:b4:00:00:00:01", "10.113.0.16", outward=True)
TWO = Pin("tap1", "02:b4:00:01:00:02", "10.113.0.17")


def test_the_whole_ruleset():
    assert ruleset(PLAN, [TWO, ONE], [("192.0.2.2", 32), ("127.0.0.0", 8)]) == snapshot("""\
table bridge banger
delete table bridge banger
table inet banger
delete table inet banger
table ip banger
delete table ip banger
table bridge banger {
    set pins { type ifname . ether_addr . ipv4_addr; }
    set peers { type ipv4_addr . ipv4_addr; }
    chain guests {
        type filter hook prerouting priority -300; policy drop;
        ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @pins iifname . arp saddr ether . arp saddr ip @pins goto questions
        ether type ip iifname . ether saddr . ip saddr @pins goto ipv4
    }
    chain questions {
        arp daddr ip { 10.113.0.1, 10.113.0.2, 10.113.0.3 } accept
        arp saddr ip . arp daddr ip @peers accept
    }
    chain ipv4 {
        ip daddr { 10.113.0.1, 10.113.0.2, 10.113.0.3 } accept
        ip saddr . ip daddr @peers accept
        ip daddr 10.113.0.0/16 drop
        accept
    }
    chain between { type filter hook forward priority -200; policy drop; }
}
table inet banger {
    set closed { type ipv4_addr; flags interval; }
    set outward { type ipv4_addr; }
    set peers { type ipv4_addr . ipv4_addr; }
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iifname "br0" icmp type echo-request accept
        iifname "br0" ip daddr 10.113.0.3 udp dport 53 accept
        iifname "br0" meta nfproto ipv4 reject with icmpx type admin-prohibited
        iifname "uplink0" meta l4proto tcp reject with tcp reset
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state invalid drop
        iifname "br0" oifname "br0" ip saddr . ip daddr @peers accept
        iifname "br0" ip saddr != @outward tcp flags & (syn | ack) != syn reject with tcp reset
        iifname "br0" ip saddr != @outward reject with icmpx type admin-prohibited
        oifname "br0" ip daddr != @outward meta l4proto tcp reject with tcp reset
        oifname "br0" ip daddr != @outward drop
        iifname "br0" oifname "uplink0" ip daddr 10.114.0.3 udp dport 53 accept
        iifname "br0" oifname "uplink0" ip daddr 10.114.0.3 tcp dport 53 accept
        iifname "br0" ip daddr @closed reject with icmpx type admin-prohibited
        iifname "br0" oifname "uplink0" meta nfproto ipv4 accept
        iifname "uplink0" oifname "br0" ct state established,related accept
    }
    chain output {
        type filter hook output priority 0; policy accept;
        meta nfproto ipv6 drop
        icmp type redirect drop
    }
}
table ip banger {
    chain names {
        type nat hook prerouting priority -100; policy accept;
        iifname "br0" ip daddr 10.113.0.2 udp dport 53 dnat to 10.114.0.3
        iifname "br0" ip daddr 10.113.0.2 tcp dport 53 dnat to 10.114.0.3
    }
    chain source {
        type nat hook postrouting priority 100; policy accept;
        oifname "uplink0" masquerade
    }
}
add element bridge banger pins { "tap0" . 02:b4:00:00:00:01 . 10.113.0.16, "tap1" . 02:b4:00:01:00:02 . 10.113.0.17 }
add element inet banger outward { 10.113.0.16 }
flush set inet banger closed
add element inet banger closed { 0.0.0.0/8, 10.113.0.0/16, 10.114.0.0/24, 127.0.0.0/8, 169.254.0.0/16, 192.0.2.2/32, 224.0.0.0/3 }
""")


def test_a_change_is_elements_of_sets_and_never_rules():
    assert pin([ONE]) == (
        'add element bridge banger pins { "tap0" . 02:b4:00:00:00:01 . 10.113.0.16 }\n'
        "add element inet banger outward { 10.113.0.16 }\n"
    )
    assert "outward" not in pin([TWO])
    assert unpin([ONE]) == pin([ONE]) + pin([ONE]).replace("add", "delete")
    assert "delete element inet banger outward { 10.113.0.17 }" in unpin([TWO])
    assert pin([TWO, ONE, TWO]) == pin([ONE, TWO])
    assert pin([]) == unpin([]) == ""


def test_the_hosts_networks_replace_those_before_in_one_transaction():
    flush, add = close_networks(PLAN, [("192.0.2.2", 32)]).splitlines()
    assert flush == "flush set inet banger closed"
    assert "192.0.2.2/32" in add
    assert "127.0.0.0/8" in add


def test_a_host_without_addresses_still_closes_what_is_always_closed():
    assert [str(network) for network in closed_networks(PLAN, [])] == [
        "0.0.0.0/8", "10.113.0.0/16", "10.114.0.0/24", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3",
    ]  # fmt: skip


@given(st.lists(st.tuples(st.ip_addresses(v=4).map(str), st.integers(8, 32)), max_size=30))
def test_every_network_of_the_host_is_closed_and_none_overlap(host):
    closed = closed_networks(PLAN, host)
    for address, length in host:
        wanted = ipaddress.ip_network(f"{address}/{length}", strict=False)
        assert any(wanted.subnet_of(network) for network in closed)
    for one, other in itertools.pairwise(closed):
        assert one.broadcast_address < other.network_address


def test_nfts_listing_of_the_set_is_read_back():
    listed = [{"concat": ["tap0", ONE.mac, ONE.ip]}, {"concat": ["tap1", TWO.mac, TWO.ip]}]
    assert pins_of(listed, [ONE.ip]) == {ONE, TWO}
    for strange in ("tap0", {"concat": ["tap0"]}, {"elem": {}}, None):
        with pytest.raises(ValueError, match="not a pin"):
            pins_of([strange], [])
