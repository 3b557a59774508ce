"""A systemd of its own, booted in namespaces, with units of the tests: its own processes, cgroups, mounts and network.

Needs root, Linux with cgroup v2 somewhere, and systemd. Nothing of it is seen from outside, and nothing is left when
its first process is killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from paths import ROOT
from waiting import wait_until

SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), None)

# Where the project and this Python are in there: a service must not see home folders, nor others' temporary files.
_PROJECT, _PYTHON = "/mnt/evloop", "/mnt/python"

# The cgroup of what is started is a new root: systemd finds itself alone. Nothing in there may write to this machine's
# files, whatever it believes to be its business at a boot: the whole root is read-only, and places to write are new.
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/evloop /mnt/python /mnt/tests
mount --bind "$1" /mnt/evloop
mount --bind "$2" /mnt/python
mount --bind "$3" /mnt/tests
for place in /mnt/evloop /mnt/python /; do mount -o remount,bind,ro $place; done
for place in /tmp /var/tmp /run; do mount -t tmpfs tmpfs $place; done
for place in / /root /var/lib /mnt/evloop; do
    if touch $place/.written 2> /dev/null; then rm $place/.written; echo "$place can be written to"; exit 1; fi
done
ip link set lo up
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount --bind /mnt/tests/units /etc/systemd/system
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=tests "$4" --system --unit=tests.target \
    --log-target=null --show-status=no
"""

# The file of settings, in there; it may be written, as `System.settings`.
SETTINGS = "/mnt/tests/charcount.env"

_UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--net", "--uts", "--ipc"]

_TARGET = "[Unit]\nDescription=Nothing but what the tests start\nDefaultDependencies=no\n"
# What units wait for as a rule is none of this business, and there is no journal.
_ALL_UNITS = "[Unit]\nDefaultDependencies=no\n"
_ALL_SERVICES = f"{_ALL_UNITS}[Service]\nStandardOutput=append:/mnt/tests/log\nStandardError=append:/mnt/tests/log\n"


@functools.cache
def why_not() -> str | None:
    """Why it can't be booted here, if it can't."""
    if sys.platform != "linux" or SYSTEMD is None or not all(map(shutil.which, ("unshare", "nsenter", "setpriv"))):
        return "systemd, unshare, nsenter and setpriv are needed"
    if os.geteuid() != 0:
        return "it takes root"
    if _cgroup() is None:
        return "there is no cgroup v2"
    if subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode != 0:
        return "there may be no new namespaces"
    return None


def _cgroup() -> Path | None:
    for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (path / "cgroup.procs").exists() and (path / "cgroup.controllers").exists():
            return path
    return None


class System:
    """It, from its boot to its end.

    Args:
        folder: for its files, empty.
        units: the names and texts of its units. ``PROGRAM`` in them stands for what runs charcount-server, ``PYTHON``
            for this Python. The folder is ``/mnt/tests`` in there.

    Attributes:
        settings: the file of the service's settings, empty at first.
    """

    def __init__(self, folder: Path, units: dict[str, str]) -> None:
        self._folder = folder
        folder.chmod(0o755)  # services run as somebody else
        self.settings = folder / Path(SETTINGS).name
        self.settings.touch()
        program = f"{_PYTHON}/bin/python3 {_PROJECT}/bin/charcount-server"
        general = {"tests.target": _TARGET, "service.d/all.conf": _ALL_SERVICES, "socket.d/all.conf": _ALL_UNITS}
        for name, text in {**general, **units}.items():
            path = folder / "units" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("PROGRAM", program).replace("=PYTHON ", f"={_PYTHON}/bin/python3 "))
        root = _cgroup()
        assert root is not None
        self._cgroup = root / f"evloop-tests-{os.getpid()}"
        self._cgroup.mkdir()
        command = ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, "--kill-child"]  # whatever happens to the tests
        enter = f'echo $$ > {self._cgroup}/cgroup.procs; exec "$@"'
        arguments = [str(ROOT), sys.base_prefix, str(folder), str(SYSTEMD)]
        with (folder / "log").open("w") as log:
            self._unshare = subprocess.Popen(
                ["sh", "-c", enter, "sh", *command, "sh", "-c", _BOOT, "sh", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._has_booted, "systemd has booted")
        except BaseException:
            sys.stderr.write(self.log)
            self.close()
            raise

    def _has_booted(self) -> bool:
        assert self._unshare.poll() is None, self.log
        children = psutil.Process(self._unshare.pid).children()
        if not children:
            return False
        self._pid = children[0].pid
        return self.run("systemctl", "is-active", "tests.target", check=False).strip() == "active"

    @property
    def log(self) -> str:
        """What systemd and its services have said."""
        return (self._folder / "log").read_text()

    def run(self, *command: str, check: bool = True, stdin: str = "") -> str:
        """Run a command in there; what it wrote, on both streams."""
        done = subprocess.run(
            [*self._enter(), *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{self.log}"
        return done.stdout

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]

    @contextlib.contextmanager
    def talk(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The program ``talk.py`` of the folder, running in there, with pipes. Killed at the end."""
        program = [f"{_PYTHON}/bin/python3", "/mnt/tests/talk.py", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen([*self._enter(), *program], stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield process
            finally:
                for child in psutil.Process(process.pid).children():
                    child.kill()
                process.kill()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """``systemctl`` in there."""
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit: str, *properties: str) -> list[str]:
        """What systemd knows of a unit."""
        lines = self.systemctl("show", unit, "--property", ",".join(properties)).splitlines()
        found = dict(line.split("=", 1) for line in lines)
        return [found[name] for name in properties]

    def main_pid(self, unit: str) -> int:
        """The main process of a service, as systemd in there counts."""
        return int(self.show(unit, "MainPID")[0])

    def client(self, *arguments: str, stdin: str = "") -> str:
        """charcount-client in there."""
        return self.run(f"{_PYTHON}/bin/python3", f"{_PROJECT}/bin/charcount-client", *arguments, stdin=stdin)

    def wait_for_log(self, text: str) -> None:
        """Wait until somebody has said it."""
        wait_until(lambda: text in self.log, f"{text!r} in the log:\n{self.log}")

    def close(self) -> None:
        """End it, and all that runs in it."""
        self._unshare.send_signal(signal.SIGKILL)  # --kill-child: and its child, which is the first of its processes
        self._unshare.wait()
        for _ in range(100):
            try:
                _remove_cgroups(self._cgroup)
                return
            except OSError:  # somebody is still ending
                time.sleep(0.05)


def _remove_cgroups(path: Path) -> None:
    for child in path.iterdir():
        if child.is_dir():
            _remove_cgroups(child)
    path.rmdir()


def unit(name: str, changes: Sequence[tuple[str, str]] = ()) -> str:
    """One of the project's units, to be run in there."""
    text = (ROOT / "deploy" / "systemd" / name).read_text()
    text = text.replace("/usr/local/bin/charcount-server", "PROGRAM").replace("/etc/charcount.env", SETTINGS)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text
