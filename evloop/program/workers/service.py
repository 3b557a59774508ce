"""A service of several processes, from its start to its end: what `evloop.program.serve` and commands call.

Nothing of this is loaded by a program that serves in one process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from functools import partial

from evloop.core.loop import Loop
from evloop.errors import ListenError
from evloop.limits import Limits
from evloop.log import load
from evloop.net.endpoint import Endpoint, FdEndpoint
from evloop.program.terminal import has_terminal, working_folder
from evloop.program.workers.cores import usable_cores
from evloop.program.workers.role import WORKER, Role, take_role
from evloop.program.workers.slotsockets import Place, close_all, open_places
from evloop.program.workers.spawn import CannotStartAgainError, Children, command_of_this_program
from evloop.program.workers.succession import Predecessor
from evloop.program.workers.supervisor import Supervisor
from evloop.ratelimit import LOADING_DELAY_S
from evloop.server.sharedcounts import CountsMemory

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.program.notify import Notifier
    from evloop.server.unixsockets import UnixAccess

# A shell that ends sends SIGHUP before its terminal goes away: after so long it is looked at once more.
_LOOK_AGAIN_S = 1.0

# In a reload a slot has two workers, and perhaps more that still drain; and there may be more workers later.
_ROWS_PER_WORKER = 3
_ROWS_TO_SPARE = 16

AUTO = "auto"

__all__ = ["AUTO", "WORKER", "Role", "supervise", "take_role", "worker_count"]


def worker_count(workers: int | str) -> int:
    """How many workers are meant.

    Raises:
        ValueError: it is neither a number from 1 on nor ``"auto"``.
    """
    if workers == AUTO:
        return usable_cores()
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a number from 1 on or {AUTO!r}, got {workers!r}")
    return workers


def supervise(
    where: Mapping[Endpoint, str],
    workers: int,
    limits: Limits,
    on_listening: Callable[[list[str]], object],
    *,
    access: UnixAccess | None = None,
    tls: bool = False,
    inherited: Mapping[Endpoint, str] | None = None,
    role: Role | None = None,
) -> Supervisor:
    """Run a service until a signal ends it. To be called in the main thread.

    SIGTERM or SIGINT: drain all workers; a second one aborts. SIGHUP: replace all workers, one after another; but end
    in order if the controlling terminal is gone. SIGUSR1: log one status for all. SIGTTIN, SIGTTOU: a worker more, or
    less.

    Args:
        where: the endpoints, and what is said behind the address of each when it is shown.
        limits: those of the workers.
        on_listening: called once, when all workers serve, with the addresses.
        access: to Unix sockets among them.
        tls: whether TLS is spoken at all of them.
        inherited: those that the process was started with, and what each is called.
        role: if this process is to take over from another service.

    Returns:
        the supervisor, for how it ended.

    Raises:
        ListenError: it can't listen, or workers can't be started; in one line, what happened and what to do.
    """
    places: list[Place] = []
    counts: CountsMemory | None = None
    notifier: Notifier | None = None
    try:
        command = command_of_this_program()
        predecessor = None if role is None else Predecessor(role)
        try:
            for endpoint, note in where.items():
                given = () if predecessor is None else predecessor.sockets_of(endpoint)
                places += open_places(endpoint, workers, limits.backlog, access, given, note=note, tls=tls)
        except OSError as error:
            raise ListenError(f"cannot open a listening socket for each worker: {error.strerror or error}") from None
        numbers = {one.number: name for one, name in (inherited or {}).items() if isinstance(one, FdEndpoint)}
        by_address = limits.max_connections if limits.max_connections_per_address is not None else 0
        counts = CountsMemory.create(_ROWS_PER_WORKER * workers + _ROWS_TO_SPARE, by_address)
        with Loop() as loop:
            if "NOTIFY_SOCKET" in os.environ:
                from evloop.program.notify import from_environment  # here, as most are started by nobody who asks

                notifier = from_environment(loop)
            children = Children(loop, command, working_folder())
            supervisor = Supervisor(
                loop, children, places, workers, limits, on_listening, numbers, predecessor, counts, notifier
            )
            _handle_signals(loop, supervisor)
            loop.call_later(LOADING_DELAY_S, load)
            loop.run()
    except CannotStartAgainError as error:
        raise ListenError(f"cannot start workers: {error}") from None
    except OSError as error:
        raise ListenError(f"cannot look after workers: {error.strerror or error}") from None
    finally:
        close_all(places)
        if counts is not None:
            counts.close()
        if notifier is not None:
            notifier.close()
    return supervisor


def _handle_signals(loop: Loop, supervisor: Supervisor) -> None:
    had_terminal = has_terminal()

    def hang_up() -> None:
        stop_without_terminal()
        if not supervisor.stopping:  # a hang-up comes from the kernel and from the shell
            supervisor.reload()
            loop.call_later(_LOOK_AGAIN_S, stop_without_terminal)

    def stop_without_terminal() -> None:
        if had_terminal and not supervisor.stopping and not has_terminal():
            supervisor.stop()

    handlers = {
        "SIGTERM": supervisor.stop,
        "SIGINT": supervisor.stop,
        "SIGHUP": hang_up,
        "SIGUSR1": supervisor.report,
        "SIGUSR2": supervisor.upgrade,
        "SIGTTIN": supervisor.one_more,
        "SIGTTOU": supervisor.one_less,
    }
    for name, handler in handlers.items():
        signum = getattr(signal, name)
        if name != "SIGHUP" or signal.getsignal(signum) is not signal.SIG_IGN:  # started by nohup
            loop.add_signal_handler(signum, partial(handler))
