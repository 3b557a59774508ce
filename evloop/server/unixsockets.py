"""Listening Unix sockets: a path in the file system, or a name in Linux's abstract namespace; and who connects to them.

Theory of operation
-------------------
The path of a Unix socket outlives its process. What is left of one that was killed is in the way of the next, and to
remove whatever is there would take the path away from a server that lives. So who finds the path taken connects to it:
if that is refused nobody listens there, and it is removed. Two servers that start at the same time could both find
that, or take each other's socket, which is bound and does not listen yet, for a dead one; so all of this is done with
the folder locked.

Nobody can connect before ``listen``, so mode and group are set between ``bind`` and that. At the end the path is
removed only if it still leads to our socket: as long as that is open its inode can't be anybody else's.

An abstract name has neither mode nor group nor remains: everybody in the same network namespace may connect.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable

from evloop.errors import ListenError
from evloop.net.endpoint import UnixEndpoint
from evloop.net.sockets import peer_text
from evloop.server.tcpsockets import ListeningSocket

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

DEFAULT_MODE = 0o660

# Others hold the lock of a folder for less than a millisecond. Who holds it for longer is no server that starts.
_LOCK_TRIES = 50
_LOCK_PAUSE_S = 0.02

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid

# The limit that `UnixGate` refuses by: the name of its counter, and what a client is told.
UID_NOT_ALLOWED = "uid-not-allowed"


class UnixAccess:
    """Who may connect to a Unix socket. An immutable value.

    Args:
        mode: the permissions of the path. To connect one needs that to write.
        group: the group of the path, a name or a number; None for that of the process.
        uids: the users who may connect, whatever their permissions are; None for everybody. Root is one of them only if
            it is named. Holds on inherited sockets and abstract names, too.
    """

    __slots__ = ("group", "mode", "uids")

    def __init__(
        self, mode: int = DEFAULT_MODE, group: str | int | None = None, uids: Iterable[int] | None = None
    ) -> None:
        if not 0 <= mode <= 0o777:
            raise ValueError(f"mode must be from 0 to 0o777, got {mode:#o}")
        self.mode = mode
        self.group = group
        self.uids = None if uids is None else frozenset(uids)


def open_unix_listener(endpoint: UnixEndpoint, backlog: int, access: UnixAccess) -> socket.socket:
    """A listening, non-blocking socket. Its path is removed when it is closed, if it is still its own.

    Raises:
        ListenError: in one line, what happened and what to do.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ListenError(f"cannot listen on {endpoint}: this system has no Unix sockets")
    if endpoint.path.startswith("@"):
        return _open_abstract(endpoint, backlog)
    group = _group_number(endpoint, access.group)
    locked = _lock_folder(endpoint.path)
    sock = None
    try:
        sock = UnixListeningSocket(endpoint.path)
        try:
            sock.take_path()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(endpoint)
            sock.take_path()
        os.chmod(endpoint.path, access.mode)
        if group is not None:
            os.chown(endpoint.path, -1, group, follow_symlinks=False)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, OSError):
            raise ListenError(_explain(error, endpoint, access)) from None
        raise
    finally:
        if locked is not None:
            os.close(locked)
    return sock


def check_unix_listener(endpoint: UnixEndpoint, access: UnixAccess) -> None:
    """Find out, without listening, whether one could listen there; a server that has the path already is no reason.

    Raises:
        ListenError: in one line, why not and what to do.
    """
    _group_number(endpoint, access.group)
    if endpoint.path.startswith("@"):
        return
    folder = os.path.dirname(endpoint.path) or "."
    try:
        os.stat(folder)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not stat.S_ISSOCK(os.lstat(endpoint.path).st_mode):
            raise _no_socket(endpoint)
    except OSError as error:
        if not (isinstance(error, FileNotFoundError) and os.path.isdir(folder)):
            raise ListenError(_explain(error, endpoint, access)) from None


class UnixListeningSocket(ListeningSocket):
    """A listening socket at a path, which is removed when it is closed, unless somebody else has it by then.

    Args:
        fileno: one that listens there already, from another process, which still has the path until `own_path`.
    """

    __slots__ = ("_identity", "_path")

    def __init__(self, path: str, fileno: int | None = None) -> None:
        super().__init__(socket.AF_UNIX, fileno)
        self._path = os.path.abspath(path) if fileno is not None else path
        self._identity: tuple[int, int] | None = None

    def take_path(self) -> None:
        """Bind it.

        Raises:
            OSError: it can't be.
        """
        self.bind(self._path)
        self._path = os.path.abspath(self._path)  # the working directory may be another one in the end
        self._identity = _identity(self._path)

    def own_path(self) -> None:
        """Remove the path in the end."""
        self._identity = _identity(self._path)

    def leave_path(self) -> None:
        """Leave it to another process that has this socket."""
        self._identity = None

    def close(self) -> None:
        if self._identity is not None and _identity(self._path) == self._identity:
            try:
                os.unlink(self._path)
            except OSError:
                pass  # a folder that may not be written any more; the next one to listen there finds it stale
        self._identity = None
        super().close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_abstract(endpoint: UnixEndpoint, backlog: int) -> socket.socket:
    if sys.platform != "linux":
        raise ListenError(f"cannot listen on {endpoint}: only Linux has abstract names; give a path")
    sock = None
    try:
        sock = ListeningSocket(socket.AF_UNIX)
        sock.bind(endpoint.address)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if not isinstance(error, OSError):
            raise
        if error.errno == errno.EADDRINUSE:
            raise ListenError(f"cannot listen on {endpoint}: the name is taken; choose another one") from None
        raise ListenError(f"cannot listen on {endpoint}: {error.strerror or error}") from None
    return sock


def _lock_folder(path: str) -> int | None:
    """A descriptor that locks the folder of a path until it is closed; None if it can't be locked."""
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None  # may be written and not read; or it isn't there, which is found out soon
    import fcntl

    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        except OSError:
            break  # a file system that knows no locks
    return folder


def _remove_stale(endpoint: UnixEndpoint) -> None:
    """Remove what a process that is gone has left at a path.

    Raises:
        ListenError: somebody listens there, or it is no socket.
        OSError: it can't be told, or not removed.
    """
    path = endpoint.path
    found = _identity(path)
    if found is None:
        return  # gone meanwhile
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise _no_socket(endpoint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
        if code in (0, errno.EAGAIN):  # or so busy that its queue is full
            pid = None if code else _pid(probe)
            raise ListenError(f"cannot listen on {endpoint}: {_owner(pid)}; stop it or choose another path")
    if code == errno.EPROTOTYPE:
        raise ListenError(f"cannot listen on {endpoint}: a socket of another kind is there; choose another path")
    if code == errno.ECONNREFUSED:
        if _identity(path) == found:
            os.unlink(path)
    elif code != errno.ENOENT:
        raise OSError(code, os.strerror(code))


def _owner(pid: int | None) -> str:
    if pid is None:
        return "another server listens there already"
    from evloop.server.portowner import process_name

    return f"{process_name(pid)} listens there already"


def _no_socket(endpoint: UnixEndpoint) -> ListenError:
    return ListenError(
        f"cannot listen on {endpoint}: what is at this path is no socket; remove it or choose another path"
    )


def _explain(error: OSError, endpoint: UnixEndpoint, access: UnixAccess) -> str:
    where = f"cannot listen on {endpoint}"
    folder = os.path.dirname(endpoint.path) or "."
    if error.errno == errno.ENOENT:
        return f"{where}: there is no folder {folder!r}; make it first"
    if error.errno in (errno.EACCES, errno.EPERM):
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{where}: no permission to write in {folder!r}; choose another folder"
        if os.path.lexists(endpoint.path):  # not ours, which is removed by now
            return f"{where}: no permission to replace what is at this path; choose another path"
        return f"{where}: no permission to give it the group {access.group}; join that group or choose another one"
    return f"{where}: {error.strerror or error}"


def _group_number(endpoint: UnixEndpoint, group: str | int | None) -> int | None:
    if group is None or isinstance(group, int):
        return group
    if group.isascii() and group.isdigit():
        return int(group)
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ListenError(f"cannot listen on {endpoint}: there is no group {group!r}") from None


# ---------------------------------------------------------------------- who connects


def peer_credentials(sock: socket.socket) -> tuple[int, int] | None:
    """The process and the user at the other end of a Unix socket: pid (0 for one that can't be seen from here) and uid,
    as they were when it connected. None where the system does not tell.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def _pid(sock: socket.socket) -> int | None:
    found = peer_credentials(sock)
    return None if found is None else found[0]


class UnixGate:
    """What a listener calls for each connection to a Unix socket: lets in who may, and notes who it is.

    Args:
        accept: called with who may come in, its socket and its name.
        refuse: called with who may not, the name of the limit (`UID_NOT_ALLOWED`) and the uid.
        uids: those who may; None for everybody.

    Raises:
        ListenError: the system does not tell who connects, and only some may.
    """

    __slots__ = ("_accept", "_refuse", "_uids")

    def __init__(
        self,
        accept: Callable[[socket.socket, Any], None],
        refuse: Callable[[socket.socket, Any, str, int], None],
        uids: frozenset[int] | None,
    ) -> None:
        if uids is not None and not hasattr(socket, "SO_PEERCRED"):
            raise ListenError("this system does not tell which user connects to a Unix socket: leave out its users")
        self._accept = accept
        self._refuse = refuse
        self._uids = uids

    def __call__(self, sock: socket.socket, address: Any) -> None:
        who = peer_credentials(sock)
        pid, uid = (0, -1) if who is None else who
        # A client chooses its path: no blank in it, or it could look as if it told another uid.
        path = "".join("?" if c.isspace() else c for c in peer_text(address).removeprefix("unix:"))
        name = path if who is None else f"{path} pid={pid} uid={uid}"
        if self._uids is not None and uid not in self._uids:
            self._refuse(sock, name, UID_NOT_ALLOWED, uid)
        else:
            self._accept(sock, name)
