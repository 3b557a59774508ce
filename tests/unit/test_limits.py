"""Limits refuse values that make no sense, by name, and their defaults make sense."""

from __future__ import annotations

import math

import pytest

from evloop import Limits
from evloop.server.descriptors import RESERVED_DESCRIPTORS, affordable_connections

LEAST_ZERO = ["low_water_bytes", "linger_timeout_s", "linger_bytes", "drain_timeout_s"]
LEAST_ONE = [
    "high_water_bytes",
    "max_unsent_bytes",
    "backlog",
    "accepts_per_pass",
    "max_connections",
    "ipv6_prefix_bits",
]
ABOVE_ZERO_OR_NONE = [
    "kernel_unsent_bytes",
    "max_connections_per_address",
    "idle_timeout_s",
    "message_timeout_s",
    "write_timeout_s",
]


def test_every_limit_is_tested_here():
    assert set(Limits.__slots__) == {*LEAST_ZERO, *LEAST_ONE, *ABOVE_ZERO_OR_NONE}


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
