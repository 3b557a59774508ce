"""Every setting of ``charcount-server``, declared once.

From this table come the options of the command line and their help, the ``CHARCOUNT_`` variables, what
``--print-config`` shows, and the table of settings in docs/operations.md. A limit of the server is declared in
`evloop.limits`, and is taken from there if it has a text for its option.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from evloop.charcount.cli.arguments import (
    endpoint,
    file_mode,
    networks,
    port_number,
    positive_number,
    seconds,
    users,
    whole_number,
    workers,
)
from evloop.charcount.server import DEFAULT_PORT
from evloop.charcount.session import CLASSIC_TEMPLATE, DEFAULT_TEMPLATE
from evloop.limits import Limit, Limits
from evloop.log import DEBUG, ERROR, INFO, WARNING

Value = bool | int | float | str | tuple[str, ...]

# Compiled when one is needed: that takes longer than all the rest of this module.
_LIST_ITEM = r"(?:\\.|[^\\,\s])+\\?|\\\Z"
_SPECIAL_IN_LIST = r"[\\,\s]"

LOG_LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}


class Setting:
    """An option, its variable, and what is told about both.

    Args:
        group: under which heading of ``--help`` it stands.
        name: with underscores: ``max_message`` is ``--max-message`` and ``CHARCOUNT_MAX_MESSAGE``.
        default: the value if nobody sets one. False makes it a switch: ``--it`` and ``--no-it``. An empty tuple makes
            it one that can be given again; its variable holds several, with a comma or blanks between.
        help: what it does.
        parse: makes the value of a text, or raises `argparse.ArgumentTypeError`.
        metavar: what stands for the value in ``--help``.
        choices: the values that there are, if these are few.
        short: another name of the option, of one letter.
        zero_is_off: 0 means that there is no such limit.
        off_because: why there is none by default.
        suggested: what to set it to for a server that faces strangers.
        unset: what it means not to be set, where the default is empty.
        replaces: names of settings that say the same in another way. On the command line they undo what a variable says
            by this one.
    """

    def __init__(
        self,
        group: str,
        name: str,
        default: Value,
        help: str,
        *,
        parse: Callable[[str], Value] = str,
        metavar: str | None = None,
        choices: tuple[str, ...] | None = None,
        short: str | None = None,
        zero_is_off: bool = False,
        off_because: str | None = None,
        suggested: str | None = None,
        unset: str = "",
        replaces: tuple[str, ...] = (),
    ) -> None:
        self.group = group
        self.name = name
        self.default = default
        self.help = help
        self.parse = parse
        self.metavar = metavar
        self.choices = choices
        self.short = short
        self.zero_is_off = zero_is_off
        self.off_because = off_because
        self.suggested = suggested
        self.unset = unset
        self.replaces = replaces

    @property
    def option(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """It takes no value."""
        return self.default is False

    @property
    def is_list(self) -> bool:
        """It may be given again."""
        return self.default == ()

    @property
    def default_shown(self) -> str:
        """The default, for people."""
        if self.unset:
            return self.unset
        if self.is_switch:
            return "no"
        if not self.zero_is_off:
            return as_text(self.default)
        return f"{as_text(self.default)}; 0: no limit" if self.default else "0: no limit"

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Add the option to a parser. Not given, its value there is None, and not the default."""
        text = f"{self.help} (default: {self.default_shown})".replace("%", "%%")
        if self.is_switch:
            group.add_argument(self.option, action=argparse.BooleanOptionalAction, help=text)
            return
        names = [self.option] if self.short is None else [self.short, self.option]
        action = "append" if self.is_list else "store"
        group.add_argument(
            *names, action=action, type=self.parse, metavar=self.metavar, choices=self.choices, help=text
        )


def as_text(value: Value) -> str:
    """A value as one would give it: 10 for ten seconds, 1 for yes."""
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    if isinstance(value, tuple | list):
        return ",".join(re.sub(_SPECIAL_IN_LIST, r"\\\g<0>", text) for text in value)
    return str(int(value) if isinstance(value, bool) else value)


def from_list(text: str) -> list[str]:
    """What a variable holds of which there are several: with commas or blanks between, and a backslash before each of
    these, and before a backslash, that is part of one.
    """
    return [re.sub(r"\\(.)", r"\1", item, flags=re.DOTALL) for item in re.findall(_LIST_ITEM, text, flags=re.DOTALL)]


def _setting_of(limit: Limit, option_help: str) -> Setting:
    """The setting that a limit of the server is; without its unit, which ``--help`` tells as that of the value."""
    is_time, is_size = limit.name.endswith("_s"), limit.name.endswith("_bytes")
    smallest = whole_number if limit.can_be_off or limit.least == 0 else positive_number
    return Setting(
        "limits",
        setting_name(limit),
        limit.default or (0.0 if is_time else 0),
        option_help,
        parse=seconds if is_time else smallest,
        metavar="SECONDS" if is_time else "BYTES" if is_size else "N",
        zero_is_off=limit.can_be_off,
        off_because=limit.off_because,
        suggested=None if limit.suggested is None else as_text(limit.suggested),
    )


def setting_name(limit: Limit) -> str:
    """What the setting of a limit is called."""
    return limit.name.removesuffix("_s").removesuffix("_bytes")


_PROCESSES = "processes (docs/operations.md)"

SETTINGS = (
    Setting(
        "where it listens",
        "host",
        "127.0.0.1",
        "name, IPv4 or IPv6 address; '' is all addresses of both families, :: all of IPv6",
    ),
    Setting("where it listens", "port", DEFAULT_PORT, "0 picks a free one", parse=port_number, short="-p"),
    Setting(
        "where it listens",
        "listen",
        (),
        "instead of host and port: HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@NAME or fd:N, with tls: in front for TLS; "
        "may be given again",
        parse=endpoint,
        metavar="ENDPOINT",
        unset="sockets it was started with, else host and port",
        replaces=("host", "port"),
    ),
    Setting(
        "where it listens",
        "unix_mode",
        "660",
        "who may connect to a Unix socket: permissions of its path, in octal",
        parse=file_mode,
        metavar="MODE",
    ),
    Setting(
        "where it listens",
        "unix_group",
        "",
        "and its group, by name or number",
        metavar="GROUP",
        unset="that of the process",
    ),
    Setting(
        "where it listens",
        "unix_uids",
        "",
        "of those, only these users, by name or number, with commas between",
        parse=users,
        metavar="UIDS",
        unset="all of them",
    ),
    Setting(
        "where it listens",
        "proxy_from",
        "",
        "proxies that send a PROXY header first, and are trusted: addresses, networks, or unix for all Unix sockets",
        parse=networks,
        metavar="CIDR[,...]",
        unset="nobody",
    ),
    Setting(
        "TLS, for endpoints with tls: in front (docs/tls.md)",
        "tls_cert",
        (),
        "the certificate, and after it its chain, in PEM; given again, a client gets the one for the name that it asks "
        "for, else the first",
        metavar="FILE",
        unset="none",
        replaces=("tls_key",),
    ),
    Setting(
        "TLS, for endpoints with tls: in front (docs/tls.md)",
        "tls_key",
        (),
        "its key, that others cannot read; one for each certificate, in the same order",
        metavar="FILE",
        unset="in the file of the certificate",
        replaces=("tls_cert",),
    ),
    Setting(
        "TLS, for endpoints with tls: in front (docs/tls.md)",
        "tls_client_ca",
        "",
        "clients must show a certificate from one of these authorities",
        metavar="FILE",
        unset="clients need none",
    ),
    Setting(
        "TLS, for endpoints with tls: in front (docs/tls.md)",
        "tls_client_auth",
        "required",
        "whether they must; optional: who shows none is served, too, but who shows a wrong one is not",
        choices=("required", "optional"),
        metavar="required|optional",
    ),
    Setting(
        "TLS, for endpoints with tls: in front (docs/tls.md)",
        "tls_min_version",
        "1.2",
        "the oldest version that is spoken",
        choices=("1.2", "1.3"),
        metavar="1.2|1.3",
    ),
    Setting(
        _PROCESSES,
        "workers",
        1,
        "how many processes serve; with more than one, one more holds the sockets and looks after them; auto: one for "
        "each core that may be used",
        parse=workers,
        metavar="N|auto",
    ),
    Setting(
        "what it speaks (docs/protocol.md)",
        "framing",
        "line",
        "line: a message ends in LF; raw: each chunk received is a message",
        choices=("line", "raw"),
        metavar="line|raw",
    ),
    Setting(
        "what it speaks (docs/protocol.md)",
        "reply",
        DEFAULT_TEMPLATE,
        "text of a reply, with {count} where the number goes",
        metavar="TEMPLATE",
    ),
    Setting(
        "what it speaks (docs/protocol.md)",
        "classic",
        False,
        f"the lab exercise's exchange: as --framing raw --reply '{CLASSIC_TEMPLATE}'",
    ),
    Setting(
        "limits",
        "max_message",
        0,
        "answer a longer message with an error; any length is safe, as messages are counted and not held in memory",
        parse=whole_number,
        metavar="BYTES",
        zero_is_off=True,
        off_because="a message of any length costs no memory",
        suggested="what your clients need",
    ),
    *(_setting_of(limit, limit.option) for limit in Limits.table.values() if limit.option is not None),
    Setting(
        "what it logs, on stderr",
        "log_level",
        "info",
        "debug, info (each connect and disconnect), warning or error",
        choices=tuple(LOG_LEVELS),
        metavar="LEVEL",
    ),
    Setting(
        "where settings are",
        "config",
        "",
        "a file of variables, as --print-config shows them; the environment and the command line win; read again on "
        "SIGHUP",
        metavar="FILE",
        unset="none",
    ),
)
