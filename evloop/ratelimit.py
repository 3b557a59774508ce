"""Logging that a client cannot flood.

A client decides how often it connects, resets or sends rubbish, so it would decide how many lines are logged. Here it
does not: only a certain number of lines of each kind is logged in a second, and then one more line says how many were
left out. Each kind has its own budget, so that lines which a client can cause do not hide others.
"""

from __future__ import annotations

from collections.abc import Callable

from evloop.log import WARNING, Logger, loaded

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Enough to read along on a quiet server and to see a pattern on a busy one.
LINES_PER_S = 20

# Kinds that are told apart at the same time: many more than there are in the project.
_MAX_KINDS = 200

# Loading the standard library's logging takes longer than an answer: the first lines let the first answers go first.
LOADING_DELAY_S = 0.05


class _Budget:
    """How many lines of one kind were logged in this second, and how many were left out."""

    __slots__ = ("left_out", "passed", "window_ends")

    def __init__(self) -> None:
        self.window_ends = 0.0
        self.passed = 0
        self.left_out = 0


class LimitedLogger:
    """A logger that passes at most ``lines_per_s`` lines of each kind in a second.

    Lines are of the same kind if their text is the same before values are put into it.

    Args:
        logger: where lines go.
        clock: a monotonic clock in seconds.
        lines_per_s: how many pass.
        call_later: a loop's. Without it, the number of lines left out is logged only together with the next line.
    """

    def __init__(
        self,
        logger: Logger,
        clock: Callable[[], float],
        lines_per_s: int = LINES_PER_S,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._call_later = call_later
        self._limit = lines_per_s
        self._budgets: dict[str, _Budget] = {}
        self._waiting: list[tuple[int, str, tuple[object, ...], Any]] = []  # until logging is loaded; few, as few pass

    def enabled(self, level: int) -> bool:
        """Whether lines of this level are logged at all."""
        return self._logger.enabled(level)

    def log(self, level: int, text: str, *args: object, exc_info: Any = None) -> None:
        """Log a line if there is room for it, else count it."""
        if not self._logger.enabled(level):
            return
        budget = self._budgets.get(text)
        if budget is None:
            if len(self._budgets) >= _MAX_KINDS:  # texts are not meant to be made up, but that must not leak
                self.flush()
                self._budgets.clear()
            budget = self._budgets[text] = _Budget()
        if budget.passed >= self._limit:
            now = self._clock()
            if now < budget.window_ends:
                budget.left_out += 1
                if budget.left_out == 1 and self._call_later is not None:
                    self._call_later(budget.window_ends - now, self.flush)
                return
            self.flush()
            budget.passed = 0
        if budget.passed == 0:
            budget.window_ends = self._clock() + 1
        budget.passed += 1
        self._emit(level, text, args, exc_info)

    def _emit(self, level: int, text: str, args: tuple[object, ...], exc_info: Any) -> None:
        if self._call_later is None or loaded():
            self._emit_waiting()
            self._logger.log(level, text, *args, exc_info=exc_info)
            return
        if not self._waiting:
            self._call_later(LOADING_DELAY_S, self._emit_waiting)
        self._waiting.append((level, text, args, exc_info))

    def _emit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for level, text, args, exc_info in waiting:
            self._logger.log(level, text, *args, exc_info=exc_info)

    def flush(self) -> None:
        """Log what waits, and say how many lines were left out since the last one that passed, if any."""
        self._emit_waiting()
        for text, budget in list(self._budgets.items()):
            if budget.left_out:
                left_out, budget.left_out = budget.left_out, 0
                self._logger.log(WARNING, "%d lines like these left out: %s", left_out, _without_conversions(text))


def _without_conversions(text: str) -> str:
    """``"lost: %s after %.3f s"`` as ``"lost: … after … s"``."""
    first, *others = text.split("%")
    return "…".join([first, *(other.lstrip("-+#.0123456789")[1:] for other in others)])
