"""How a stream ends, as its client sees it."""

from __future__ import annotations

from clients import Client


def assert_no_reset_follows(client: Client) -> None:
    """After the server's last words and its FIN, the client can go on sending as if it had not noticed yet.

    On loopback the words always come first and stay readable, reset or not; over a network a reset may overtake them.
    So it is the reset itself that must not come: the server reads on, and drops what it reads.
    """
    for _ in range(10):
        client.send(b"y" * 10_000)  # fails once a reset has come, and a closed end answers each of these with one
    client.half_close()
    assert client.receive_rest() == b""


def read_to_the_end(client: Client) -> tuple[bytes, bool]:
    """All that still comes, and whether the end was a reset instead of an orderly one."""
    parts: list[bytes] = []
    try:
        while part := client.socket.recv(1 << 20):
            parts.append(part)
    except ConnectionError:
        return b"".join(parts), True
    return b"".join(parts), False
