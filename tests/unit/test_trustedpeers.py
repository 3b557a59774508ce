"""Which addresses are in a list of networks, and what is said of a list that makes no sense."""

from __future__ import annotations

import ipaddress
import socket

import hypothesis.strategies as st
import pytest
from hypothesis import given

from evloop.net.trustedpeers import TrustedPeers

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        ("127.0.0.1", ["127.0.0.1", "::ffff:127.0.0.1"], ["127.0.0.2", "::1"]),
        ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], ["::", "::1"]),
        ("::/0", ["::", "2001:db8::1"], ["1.2.3.4", "::ffff:1.2.3.4"]),
        ("fe80::/10", ["fe80::1%eth0", "febf::1"], ["fec0::1"]),
        ("2001:db8::7", ["2001:db8::7"], ["2001:db8::8"]),
        (" 192.0.2.1 , 2001:db8::/32,", ["192.0.2.1", "2001:db8:ffff::"], ["192.0.2.2", "2001:db9::"]),
        (["192.0.2.1", "198.51.100.0/24,203.0.113.0/24"], ["198.51.100.9", "203.0.113.9"], ["192.0.2.2"]),
        ("", [], ["127.0.0.1", "::1"]),
        ("unix", [], ["127.0.0.1", "::1"]),
    ],
)
def test_addresses(networks, inside, outside):
    peers = TrustedPeers(networks)
    for address in [*inside, *outside]:
        family = V6 if ":" in address else V4
        assert peers.contains(family, (address, 4711, 0, 0)) == (address in inside), address


def test_unix_sockets_have_no_address_and_are_named():
    unix = getattr(socket, "AF_UNIX", socket.AF_UNSPEC)
    assert TrustedPeers("10.0.0.0/8,unix").contains(unix, "")
    assert not TrustedPeers("0.0.0.0/0,::/0").contains(unix, b"\0abstract")


@pytest.mark.parametrize("text", ["10.0.0.0/33", "example.org", "10.0.0.1:80", "10.0.0", "/8", "fe80::1%eth0", "UNIX"])
def test_what_is_no_network_is_named_with_what_was_meant(text):
    with pytest.raises(ValueError, match="is no network: give addresses or networks") as caught:
        TrustedPeers(f"127.0.0.1,{text}")
    assert repr(text) in str(caught.value)


def test_a_network_that_goes_on_after_its_prefix_is_probably_a_mistake():
    with pytest.raises(ValueError, match=r"'10.0.0.5/8' goes on after its first 8 bits: 10.0.0.0/8 is the network"):
        TrustedPeers("10.0.0.5/8")
    with pytest.raises(ValueError, match="2001:db8::/32 is the network"):
        TrustedPeers("2001:db8::1/32")


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128))
def test_it_is_as_ipaddress_has_it(address, base, bits):
    network = ipaddress.ip_network((base, min(bits, base.max_prefixlen)), strict=False)
    if address.version == 6 and address.ipv4_mapped:
        return
    for one in (address, base, network[-1]):
        family = V4 if one.version == 4 else V6
        if one.version == 6 and one.ipv4_mapped:
            continue
        assert TrustedPeers(str(network)).contains(family, (str(one), 1)) == (one in network)
