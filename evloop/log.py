"""The standard library's logging, loaded when the first line is logged.

To import it takes half as long as to start Python. A server should give its first answers before that, and a client
that only shows a count does not need it at all. Loggers, levels and handlers are the ordinary ones, with their ordinary
names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    import logging
    from typing import Any

# As in logging, and one above all of those: what was asked for is logged whatever the level is.
DEBUG, INFO, WARNING, ERROR, NOTICE = 10, 20, 30, 40, 60

# What is to be done when logging gets loaded, and the level that will then be in force.
_configure: Callable[[], object] | None = None
_level = WARNING


def configure_later(level: int, configure: Callable[[], object]) -> None:
    """For a program's main function: have ``configure`` called when logging is loaded, or now if it is.

    Args:
        level: from which lines are logged, once configured.
        configure: sets up handlers and that level.
    """
    global _configure, _level
    _configure, _level = configure, level
    if loaded():
        load()


def loaded() -> bool:
    """Whether logging a line would load nothing any more."""
    return "logging" in sys.modules


def load() -> None:
    """Load logging now: for a program that has nothing else to do, or will soon have no descriptor left for it."""
    global _configure
    import logging

    logging.addLevelName(NOTICE, "NOTICE")
    if _configure is not None:
        _configure()
        _configure = None  # only now: if that has failed, for want of memory, the next line tries again


def say(text: str) -> None:
    """One line on stderr beside the log, if that can be written: nobody needs to read it for a program to go on."""
    if sys.stderr is not None:  # else print would take stdout
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError, MemoryError):  # ValueError: it was closed
            pass


class Logger:
    """The logger of that name.

    Args:
        name: as for ``logging.getLogger``.
    """

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: logging.Logger | None = None

    def enabled(self, level: int) -> bool:
        """Whether lines of this level are logged at all."""
        if self._logger is None:
            if not loaded():
                return level >= _level
            return self._stdlib().isEnabledFor(level)
        return self._logger.isEnabledFor(level)

    def log(self, level: int, text: str, *args: object, exc_info: Any = None) -> None:
        """Log a line: ``text % args``."""
        if self.enabled(level):
            # Without descriptors or memory logging can't be loaded (which is an ImportError, too), or a line not be
            # made: then this line is lost, the caller must not be.
            try:
                self._stdlib().log(level, text, *args, exc_info=exc_info)
            except (OSError, ImportError, MemoryError):
                return

    def _stdlib(self) -> logging.Logger:
        if self._logger is None:
            load()
            import logging

            self._logger = logging.getLogger(self._name)
        return self._logger
