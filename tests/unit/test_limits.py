"""Limits refuse values that make no sense, by name, and their defaults make sense."""

from __future__ import annotations

import copy
import inspect
import math

import pytest

from evloop import Limits, serve
from evloop.limits import limit
from evloop.server.descriptors import RESERVED_DESCRIPTORS, affordable_connections

TABLE = Limits.table
LEAST_ZERO = [name for name, entry in TABLE.items() if not entry.can_be_off and entry.least == 0]
LEAST_ONE = [name for name, entry in TABLE.items() if not entry.can_be_off and entry.least == 1]
LEAST_MORE = [name for name, entry in TABLE.items() if not entry.can_be_off and entry.least > 1]
ABOVE_ZERO_OR_NONE = [name for name, entry in TABLE.items() if entry.can_be_off]


def test_every_limit_is_tested_here():
    assert {*LEAST_ZERO, *LEAST_ONE, *LEAST_MORE, *ABOVE_ZERO_OR_NONE} == set(TABLE)
    # They are read off the table, so this knows of each kind one.
    assert "drain_timeout_s" in LEAST_ZERO
    assert "backlog" in LEAST_ONE
    assert "proxy_header_bytes" in LEAST_MORE
    assert "write_timeout_s" in ABOVE_ZERO_OR_NONE


@pytest.mark.parametrize("name", TABLE)
def test_a_value_that_is_given_is_kept_and_the_others_have_their_defaults(name):
    value = 2 * TABLE[name].default if name == "max_unsent_bytes" else TABLE[name].most or 20000
    limits = Limits(**{name: value})
    for other, entry in TABLE.items():
        assert getattr(limits, other) == (value if other == name else entry.default)


def test_what_is_off_by_default_says_why_and_is_told_to_who_writes_a_server():
    for name, entry in TABLE.items():
        off = entry.default is None
        assert (entry.off_because is not None) is (entry.suggested is not None) is off, name
        assert (f"``{name}``: {entry.off_because}" in Limits.__doc__) is off, name
        assert (f"``{name}``" in serve.__doc__) is off, name


def test_a_keyword_that_is_no_limit_is_named_with_those_there_are():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'max_conns'; there are: .*max_connections, "):
        Limits(max_conns=5)
    with pytest.raises(TypeError):
        Limits(5)


def test_help_shows_the_keywords_and_their_defaults():
    shown = inspect.signature(Limits).parameters
    assert {name: parameter.default for name, parameter in shown.items()} == {
        name: entry.default for name, entry in TABLE.items()
    }


def test_limits_are_small_and_can_be_copied_and_derived_from():
    class MyLimits(Limits):
        pass

    assert not hasattr(Limits(), "__dict__")
    assert repr(copy.copy(Limits(backlog=7))) == repr(Limits(backlog=7))
    assert MyLimits(backlog=7).backlog == 7
    assert MyLimits().max_connections == Limits().max_connections


@pytest.mark.parametrize("name", LEAST_MORE)
def test_must_be_enough(name):
    least = TABLE[name].least
    assert getattr(Limits(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        Limits(**{name: least - 1})


@pytest.mark.parametrize("name", LEAST_ZERO)
def test_must_not_be_negative(name):
    assert getattr(Limits(**{name: 0}), name) == 0
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        Limits(**{name: -1})


def test_an_ipv6_address_has_so_many_bits():
    assert Limits(ipv6_prefix_bits=128).ipv6_prefix_bits == 128
    with pytest.raises(ValueError, match="ipv6_prefix_bits must be at most 128, got 129"):
        Limits(ipv6_prefix_bits=129)


@pytest.mark.parametrize("name", LEAST_ONE)
def test_must_be_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize("name", ABOVE_ZERO_OR_NONE)
def test_must_be_above_zero_unless_off(name):
    assert getattr(Limits(**{name: None}), name) is None
    assert getattr(Limits(**{name: 1}), name) == 1
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0 .* got {value}"):
            Limits(**{name: value})


def test_must_not_be_above_the_greatest_that_makes_sense():
    entry = limit(default=64, most=128, at_it="")
    entry.name = "some_bits"
    entry.check(128)
    with pytest.raises(ValueError, match="some_bits must be at most 128, got 129"):
        entry.check(129)


@pytest.mark.parametrize("name", [*LEAST_ZERO, *LEAST_ONE, *ABOVE_ZERO_OR_NONE])
def test_not_a_number_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: math.nan})


@pytest.mark.parametrize(("low", "high", "most"), [(10, 10, 100), (11, 10, 100), (5, 11, 10)])
def test_water_marks_must_be_in_order(low, high, most):
    with pytest.raises(ValueError, match="low_water_bytes must be below high_water_bytes"):
        Limits(low_water_bytes=low, high_water_bytes=high, max_unsent_bytes=most)


def test_limits_cannot_be_changed():
    with pytest.raises(AttributeError):
        Limits().backlog = 1


def test_connections_are_lowered_to_what_the_selector_can_watch():
    assert affordable_connections(10, 1024) == 10
    assert affordable_connections(1_000_000, 100) == 100 - RESERVED_DESCRIPTORS
    assert affordable_connections(5, 1) == 1


def test_connections_are_lowered_to_the_descriptor_limit(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (200, 4096))
    assert affordable_connections(10_000, None) == 200 - RESERVED_DESCRIPTORS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert affordable_connections(10_000, None) == 10_000
