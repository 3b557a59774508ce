"""Whether a worker is well, late or stuck, and when one that died is followed by another."""

from __future__ import annotations

import pytest

from evloop.program.workers.health import LATE_S, Backoff, Pulse


def test_a_worker_that_dies_young_is_followed_at_once_then_ever_later_up_to_5_s():
    backoff = Backoff()
    assert [round(backoff.after(0.0), 3) for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


def test_one_that_lived_is_followed_at_once_and_so_is_the_next():
    backoff = Backoff()
    for _ in range(5):
        backoff.after(0.5)
    assert backoff.after(1.0) == 0
    assert backoff.after(0.5) == 0
    assert backoff.after(0.5) > 0


def test_without_beats_it_is_late_then_given_up_and_a_beat_makes_it_well_again():
    pulse = Pulse(60, 30)
    pulse.became_ready()
    assert pulse.well
    pulse.let_pass(LATE_S)
    assert not pulse.well
    pulse.heard()
    assert pulse.well
    for _ in range(299):
        pulse.let_pass(0.1)
    assert not pulse.given_up
    pulse.let_pass(0.11)
    assert pulse.given_up


def test_until_it_is_ready_it_has_another_time_which_no_message_restarts():
    pulse = Pulse(1, 30)
    pulse.let_pass(0.5)
    pulse.heard()
    assert not pulse.well
    assert not pulse.given_up
    pulse.let_pass(0.5)
    assert pulse.given_up
    pulse.became_ready()
    assert not pulse.given_up


def test_a_time_in_which_the_supervisor_did_not_run_counts_little():
    pulse = Pulse(60, 30)
    pulse.became_ready()
    pulse.let_pass(3600)
    assert not pulse.given_up
    assert pulse.silent_s < 1


@pytest.mark.parametrize("ready", [True, False])
def test_without_a_time_out_it_is_never_given_up(ready):
    pulse = Pulse(None, None)
    if ready:
        pulse.became_ready()
    for _ in range(100_000):
        pulse.let_pass(1)
    assert not pulse.given_up
