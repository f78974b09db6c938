"""The host's table, whole; whose a table is; and what other firewalls' rules mean for forwarded packets."""

import pytest
from inline_snapshot import snapshot

from banger.network.uplinks.obstacles import blocks, forward_chains, mend
from banger.network.uplinks.resolvers import find_resolver, first
from banger.network.uplinks.slots import SlotPlan
from banger.network.uplinks.table import Rules, Uplink, made_by, ruleset

PLAN = SlotPlan()


def test_the_whole_table():
    uplinks = (Uplink(PLAN.slot(1), 1000), Uplink(PLAN.slot(2), 0))
    assert ruleset(Rules("f00d", uplinks, "192.0.2.53", ("eth0",))) == snapshot("""\
table inet banger_host
delete table inet banger_host
table inet banger_host {
    chain made_by_banger_helper_f00d {
    }
    set links {
        type ifname
        elements = { "banger-up1", "banger-up2" }
    }
    set opened {
        type ifname
        elements = { "eth0" }
    }
    set sources {
        type ifname . ipv4_addr
        flags interval
        elements = { "banger-up1" . 10.115.4.0/22, "banger-up1" . 10.115.0.3, "banger-up2" . 10.115.8.0/22, "banger-up2" . 10.115.0.5 }
    }
    set guests {
        type ipv4_addr
        flags interval
        elements = { 10.115.4.0/22, 10.115.0.3, 10.115.8.0/22, 10.115.0.5 }
    }
    set gateways {
        type ipv4_addr
        elements = { 10.115.0.2, 10.115.0.4 }
    }
    set owners {
        typeof oifname . meta skuid
        elements = { "banger-up1" . 1000, "banger-up2" . 0 }
    }
    chain source {
        type filter hook prerouting priority -300; policy accept;
        iifname != @links accept
        meta nfproto != ipv4 drop
        iifname . ip saddr != @sources drop
        ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4 } drop
    }
    chain input {
        type filter hook input priority -5; policy accept;
        iifname != @links accept
        ct state established,related accept
        ct original ip daddr @gateways ct status dnat meta l4proto { tcp, udp } th dport 53 accept
        drop
    }
    chain forward {
        type filter hook forward priority -5; policy accept;
        iifname @links oifname @links drop
        iifname @links ct state invalid drop
        iifname @links ip daddr @guests drop
        iifname @links accept
        oifname @links ct state established,related accept
        oifname @links drop
        iifname @opened ct state new ct status != dnat drop
    }
    chain output {
        type filter hook output priority -5; policy accept;
        oifname != @links accept
        meta nfproto != ipv4 drop
        ct state established,related accept
        meta skuid 0 accept
        oifname . meta skuid @owners accept
        meta l4proto icmp accept
        reject with icmpx admin-prohibited
    }
    chain names {
        type nat hook prerouting priority -100; policy accept;
        iifname @links ip daddr @gateways udp dport 53 dnat ip to 192.0.2.53
        iifname @links ip daddr @gateways tcp dport 53 dnat ip to 192.0.2.53
    }
    chain outward {
        type nat hook postrouting priority 100; policy accept;
        ip saddr @guests oifname != @links masquerade
    }
}
""")


def test_without_uplinks_there_is_no_table():
    assert ruleset(Rules("f00d", ())) == snapshot("""\
table inet banger_host
delete table inet banger_host
""")


def test_rules_do_not_grow_with_uplinks():
    def rules(count):
        uplinks = tuple(Uplink(PLAN.slot(n), n) for n in range(1, count + 1))
        return ruleset(Rules("f00d", uplinks, "192.0.2.53")).count("\n")

    assert rules(1) == rules(63)


def test_whose_a_table_is():
    def chain(name, table="banger_host"):
        return {"family": "inet", "table": table, "name": name}

    assert made_by([]) is None
    assert made_by([chain("input", "filter"), chain("made_by_banger_helper_x", "other")]) is None
    assert made_by([chain("source"), chain("made_by_banger_helper_f00d")]) == "f00d"
    assert made_by([chain("source")]) == ""


def base(family="ip", table="filter", name="FORWARD", policy="drop"):
    return {"family": family, "table": table, "name": name, "hook": "forward", "policy": policy}


def match(direction, name, *verdict):
    expr = {"match": {"op": "==", "left": {"meta": {"key": direction}}, "right": name}}
    return [expr, *[{each: None} for each in verdict]]


def rule(*expr, chain="FORWARD"):
    return {"chain": chain, "expr": list(expr)}


BOTH = [rule(*match(d, "banger-up*", "accept"), chain="DOCKER-USER") for d in ("iifname", "oifname")]  # fmt: skip


def test_only_others_base_chains_for_forwarded_ipv4_count():
    ours = base("inet", "banger_host", "forward", "accept")
    others = [base(), base("ip6"), base("bridge"), {"family": "ip", "table": "x", "name": "y"}]
    assert forward_chains([ours, *others]) == [base()]


@pytest.mark.parametrize(("chain", "rules", "blocked"), [
    (base(), [], True),
    (base(policy="accept"), [], False),
    (base(), BOTH, False),
    (base(), BOTH[:1], True),
    (base(), [rule(*match("iifname", "docker0", "accept"))], True),
    (base(policy="accept"), [rule({"reject": None})], True),
    (base(policy="accept"), [rule({"counter": {}}, {"drop": None})], True),
    (base(policy="accept"), [rule(*match("iifname", "eth9", "drop"))], False),
    (base(policy="accept"), [rule({"reject": None}, chain="elsewhere")], False),
    (base(policy="accept"), [rule({"reject": None}), *BOTH], False),
])  # fmt: skip
def test_a_chain_blocks_unless_it_lets_our_links_through_both_ways(chain, rules, blocked):
    assert blocks(chain, rules) is blocked


def test_each_kind_of_firewall_is_mended_in_its_own_way():
    docker = [rule(chain="DOCKER-USER")]
    assert mend(base(), docker) == snapshot(
        "sudo iptables -I DOCKER-USER -i banger-up+ -j ACCEPT && sudo iptables -I DOCKER-USER -o banger-up+ -j ACCEPT"
    )
    assert mend(base(), []) == snapshot(
        "sudo iptables -I FORWARD -i banger-up+ -j ACCEPT && sudo iptables -I FORWARD -o banger-up+ -j ACCEPT"
    )
    assert mend(base("inet", "firewalld", "filter_FORWARD", "accept"), []) == snapshot(
        "sudo firewall-cmd --permanent --zone=trusted --add-interface=banger-up+ && sudo firewall-cmd --reload"
    )
    assert mend(base("inet", "mine", "fwd"), []) == snapshot(
        "sudo nft 'insert rule inet mine fwd iifname \"banger-up*\" accept' && sudo nft 'insert rule inet mine fwd oifname \"banger-up*\" accept'"
    )


@pytest.mark.parametrize(("text", "address"), [
    ("nameserver 192.0.2.53\n", "192.0.2.53"),
    ("# x\nsearch a b\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver 9.9.9.9 extra\nnameserver 1.1.1.1", "9.9.9.9"),
    ("nameserver 127.0.0.53\noptions edns0\n", ""),
    ("nameserver\nnameserver 300.1.1.1\nnameserver 0.0.0.0\nnameserver 169.254.1.1", ""),
    ("nameserver 127.0.0.1\nnameserver 10.0.0.1", "10.0.0.1"),
    ("", ""),
])  # fmt: skip
def test_the_first_name_server_that_is_not_the_hosts_own_loopback(text, address):
    assert first(text) == address


def test_behind_a_resolver_on_loopback_are_those_whom_it_asks(tmp_path):
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    real.write_text("nameserver 192.0.2.53\n")
    assert find_resolver([stub, tmp_path / "missing", real]) == "192.0.2.53"
    assert find_resolver([stub]) == "127.0.0.53"  # better than none: it is asked by a relay
    assert find_resolver([tmp_path / "missing"]) == ""


def test_a_resolver_on_loopback_is_asked_by_the_host_itself():
    text = ruleset(Rules("f00d", (Uplink(PLAN.slot(1), 0),), "127.0.0.53"))
    assert "dnat" not in text.replace("status dnat", "").replace("!= dnat", "")
    assert "ip daddr @gateways meta l4proto { tcp, udp } th dport 53 accept" in text
