"""A server of one process reads its settings again: what can be changed while it runs is, and what can't is told."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from evloop.charcount.cli.settings import LOG_LEVELS, SETTINGS, setting_name
from evloop.limits import Limits
from evloop.log import NOTICE, WARNING, Logger

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import NoReturn

    from evloop.charcount.cli.arguments import CommandParser
    from evloop.charcount.server import ServiceSettings
    from evloop.net.tlssettings import TLSServerSettings
    from evloop.server.server import Server

_log = Logger("charcount")

# Limits that belong to a listening socket.
_OF_LISTENERS = {"backlog", "accepts_per_pass", "kernel_unsent_bytes"}


class _BadSettingsError(Exception):
    """In one line, what is wrong."""


class Reloading:
    """What SIGHUP does.

    Args:
        args: the settings in force.
        tls: what endpoints of TLS are served with; None if there is none.
        make_parser, parse, make_settings: as when the server was started.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        server: Server,
        tls: TLSServerSettings | None,
        make_parser: Callable[[], CommandParser],
        parse: Callable[[CommandParser], argparse.Namespace],
        make_settings: Callable[[CommandParser, argparse.Namespace], ServiceSettings],
    ) -> None:
        self._args = args
        self._server = server
        self._tls = tls
        self._make_parser = make_parser
        self._parse = parse
        self._make_settings = make_settings

    def __call__(self) -> None:
        """Read everything again. If anything is bad all stays as it is."""
        parser = self._make_parser()
        parser.on_error = _raise
        try:
            args = self._parse(parser)
            settings = self._make_settings(parser, args)
        except _BadSettingsError as error:
            _log.log(WARNING, "not reloaded, the old settings stay in force: %s", error)
            return
        if self._tls is not None and not self._tls.reload_and_log():
            return
        changed = [one.name for one in SETTINGS if getattr(args, one.name) != getattr(self._args, one.name)]
        at_once = self._changeable(changed)
        if at_once:
            self._server.change_limits(settings.limits)
            if "log_level" in at_once:
                import logging

                logging.getLogger().setLevel(LOG_LEVELS[args.log_level])
            for name in at_once:
                setattr(self._args, name, getattr(args, name))
        text = ", ".join(map(_option, at_once)) or "nothing has changed that can be changed now"
        later = [name for name in changed if name not in at_once]
        if later:
            text += "; these need an upgrade (SIGUSR2) or a restart: " + ", ".join(map(_option, later))
        _log.log(NOTICE, "reloaded: %s", text)

    def _changeable(self, changed: list[str]) -> list[str]:
        limits = {setting_name(limit) for limit in Limits.table.values() if limit.name not in _OF_LISTENERS}
        return [name for name in changed if name in limits or name in ("log_level", "config")]


def _raise(message: str) -> NoReturn:
    raise _BadSettingsError(message)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
