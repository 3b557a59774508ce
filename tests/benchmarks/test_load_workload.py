"""Messages and the replies they must get."""

from __future__ import annotations

import random

import pytest

from evloop_bench.common.texts import ALPHABETS, make_texts
from evloop_bench.loadgen.workload import Pool, SizeError, make_pool, parse_sizes


def texts_of(size: str, text: str, count: int) -> list[bytes]:
    rng = random.Random(1)
    return make_texts(parse_sizes(size).sampler(rng), text, count, rng)


@pytest.mark.parametrize("text", ALPHABETS)
@pytest.mark.parametrize("size", ["0", "1", "32", "10000", "uniform:0-40", "lognormal:50,1.5"])
def test_messages_are_valid_text_of_the_size_asked_for(text: str, size: str) -> None:
    sizes = parse_sizes(size)
    for message in make_texts(sizes.sampler(random.Random(7)), text, 50, random.Random(7)):
        message.decode()
        assert sizes.low_bytes <= len(message) <= sizes.high_bytes or sizes.kind == "lognormal"
        assert b"\n" not in message
        assert b"\r" not in message


def test_sizes_follow_their_distribution() -> None:
    lengths = sorted(map(len, texts_of("lognormal:100,0.5", "ascii", 2001)))
    assert 90 <= lengths[1000] <= 110
    assert lengths[0] < 50
    assert lengths[-1] > 200
    assert set(map(len, texts_of("uniform:3-6", "ascii", 200))) == {3, 4, 5, 6}


def test_wide_texts_have_fewer_characters_than_bytes() -> None:
    for text, least in (("latin", 1), ("cjk", 15), ("emoji", 15), ("mixed", 1)):
        messages = texts_of("30", text, 100)
        assert sum(30 - len(message.decode()) for message in messages) / 100 >= least


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "3.5", "uniform:5", "uniform:9-3", "lognormal:", "lognormal:5,-1", "uniform:", "99999999999"],
)
def test_a_size_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SizeError, match="is not a size"):
        parse_sizes(text)


def test_a_seed_gives_the_same_messages_again() -> None:
    sizes = parse_sizes("uniform:1-50")
    assert make_pool(sizes, "mixed", 1, 5).requests == make_pool(sizes, "mixed", 1, 5).requests
    assert make_pool(sizes, "mixed", 1, 5).requests != make_pool(sizes, "mixed", 1, 6).requests


def test_slices_of_a_pool_go_round() -> None:
    pool = Pool([b"a", "bé".encode(), b"", "日本語".encode()])
    assert pool.requests_from(3, 3) == "日本語\na\nbé\n".encode()
    assert pool.replies_from(3, 3) == b"3\n1\n2\n"
    assert pool.replies_from(0, 4) == b"1\n2\n0\n3\n"


def test_a_pool_has_room_for_the_window_and_bounded_memory() -> None:
    assert make_pool(parse_sizes("10"), "ascii", 9000, 1).size == 9000
    large = make_pool(parse_sizes("1000000"), "ascii", 1, 1)
    assert large.size == 16
