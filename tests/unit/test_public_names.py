"""The names that `import evloop` offers are all there, though each is loaded only when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import evloop


@pytest.mark.parametrize("name", evloop.__all__)
def test_each_public_name_can_be_had(name):
    assert getattr(evloop, name) is not None
    assert name in dir(evloop)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'asyncore'"):
        _ = evloop.asyncore


def test_a_client_does_not_load_a_server():
    program = "import sys, evloop.charcount.cli.client; print(*[m for m in sys.modules if m.startswith('evloop.')])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "evloop.charcount.client" in loaded
    assert not {"evloop.server.server", "evloop.core.loop", "evloop.net.connection", "evloop.server.listener"} & set(
        loaded
    )
