"""docs/reliability.md is about tests that exist, and leaves no numbered test out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paths import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text()
FOLDER = Path(__file__).parent
TESTS = {name for path in FOLDER.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
ROWS = {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)$", PAGE, re.M)}


NUMBERS = {int(number) for name in TESTS for number in re.findall(r"^test_(\d{2,})_", name)}


def test_all_numbers_are_listed_once_and_in_the_order_of_their_section():
    for section in PAGE.split("\n### ")[1:]:
        numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.M)]
        assert numbers == sorted(numbers), section.partition("\n")[0]
    assert sorted(int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.M)) == sorted(NUMBERS)


@pytest.mark.parametrize("number", sorted(ROWS))
def test_each_line_names_tests_that_exist_and_none_is_left_out(number):
    named = re.findall(r"`(test_\w+)`", ROWS[number])
    own = [prefix for prefix in named if prefix.startswith(f"test_{number:02}_")]
    assert own
    for prefix in named:
        assert any(name.startswith(prefix) for name in TESTS), f"no test begins with {prefix}"
    for name in TESTS:
        if name.startswith(f"test_{number:02}_"):
            assert any(name.startswith(prefix) for prefix in own), f"{name} is not on the page"
