"""The order in which addresses are tried, and what is an address already."""

from __future__ import annotations

import socket

import hypothesis.strategies as st
import pytest
from hypothesis import given

from evloop.net.resolver import interleaved, literal_addresses, look_up, lookup_error

FOUR, SIX = socket.AF_INET, socket.AF_INET6


def addresses(text: str) -> list[tuple[int, str]]:
    return [(SIX if name.isupper() else FOUR, name) for name in text.split()]


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ("", ""),
        ("a", "a"),
        ("A B C a b", "A a B b C"),
        ("a A B C", "a A B C"),
        ("a b c", "a b c"),
        ("a b c A", "a A b c"),
        ("A A a A a", "A a"),
    ],
)
def test_the_families_in_turn_beginning_with_the_first(found: str, tried: str) -> None:
    assert interleaved(addresses(found)) == addresses(tried)


@given(st.lists(st.tuples(st.sampled_from([FOUR, SIX]), st.integers(0, 5))))
def test_each_once_and_in_each_family_the_order_is_kept(found):
    tried = interleaved(found)
    assert len(tried) == len(set(found))
    for family in (FOUR, SIX):
        assert [a for a in tried if a[0] == family] == list(dict.fromkeys(a for a in found if a[0] == family))
    both = min(sum(a[0] == family for a in tried) for family in (FOUR, SIX))
    for one, other in zip(tried[: 2 * both : 2], tried[1 : 2 * both : 2], strict=True):
        assert one[0] != other[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%1", "0.0.0.0"])
def test_an_address_is_not_looked_up(host: str) -> None:
    found = literal_addresses(host, 80)
    assert found is not None
    ((family, address),) = found
    assert family == (SIX if ":" in host else FOUR)
    assert address[:2] == (host.partition("%")[0], 80) or address[:2] == (host, 80)


@pytest.mark.parametrize("host", ["localhost", "a..b", "bücher.example", "", "256.1.1.1", "x" * 300, "::g"])
def test_a_name_is(host: str) -> None:
    assert literal_addresses(host, 80) is None


def test_a_name_of_this_machine() -> None:
    found = look_up("localhost", 80)
    assert (FOUR, ("127.0.0.1", 80)) in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70 + ".invalid"])
def test_why_a_name_has_no_address(host: str) -> None:
    with pytest.raises((OSError, UnicodeError)) as caught:
        look_up(host, 80)
    text = lookup_error(host, caught.value)
    assert text.startswith(f"cannot resolve {host!r}: ")
    assert text.isprintable()
