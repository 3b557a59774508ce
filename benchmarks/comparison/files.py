"""The files that a comparison writes and reads. What was measured for half an hour must not be lost to a full disk.

So it is checked before the first run that they can be written, the figures are written whenever some are complete, and
if that fails in the end they go to a file in the directory for temporary ones, which is named.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.comparison.results import Results
from benchmarks.comparison.scenarios import SCENARIOS

SCHEMA = 1


class FileError(Exception):
    """A file can't be read or written. The text is one line that says which and why."""


def check_writable(file: Path | None, directory: Path | None) -> None:
    """See that ``file`` can be written and that files can be made in ``directory``, which is made if it isn't there.

    Raises:
        FileError: one of them can't be.
    """
    path = file
    try:
        if file is not None:
            if is_replaced(file):
                _temporary_beside(file).unlink()
            else:
                file.open("ab").close()
        if directory is not None:
            path = directory
            directory.mkdir(parents=True, exist_ok=True)
            _temporary_beside(directory / "versus.md").unlink()
    except OSError as error:
        raise FileError(f"cannot write to {path}: {error.strerror}") from None


def as_document(results: Results, machine: dict[str, Any], argv: list[str]) -> str:
    """What stands in a file of figures."""
    return json.dumps({"schema": SCHEMA, "machine": machine, "argv": argv, **results.to_json()}, indent=1) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it always holds the old text or the new one, whole.

    Raises:
        FileError: it could not be written.
    """
    try:
        if not is_replaced(path):
            path.write_text(text, encoding="utf-8")
            return
        unfinished = _temporary_beside(path)
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
    except OSError as error:
        raise FileError(f"cannot write to {path}: {error.strerror}") from None


def save_elsewhere(text: str) -> Path:
    """Write it into the directory for temporary files.

    Raises:
        FileError: that failed, too.
    """
    path = Path(tempfile.gettempdir())
    try:
        fd, name = tempfile.mkstemp(prefix="versus-", suffix=".json")
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise FileError(f"cannot write to {path}: {error.strerror}") from None
    return Path(name)


def is_replaced(path: Path) -> bool:
    """Whether writing replaces a file. Not so what is no file of its own: a pipe, a terminal, /dev/stdout."""
    return path.parts[:2] not in (("/", "dev"), ("/", "proc")) and (path.is_file() or not path.exists())


def _temporary_beside(path: Path) -> Path:
    target = path.resolve()  # of a link, what it points to is replaced
    if target.is_dir():
        raise IsADirectoryError(21, os.strerror(21))
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(fd)
    umask = os.umask(0)
    os.umask(umask)
    Path(name).chmod(0o666 & ~umask)  # as any other file; mkstemp's is for its owner alone
    return Path(name)


def read_document(path: Path) -> tuple[Results, dict[str, Any]]:
    """Read a file of figures.

    Returns:
        the results, and the machine they are from.

    Raises:
        FileError: it can't be read, or no comparison wrote it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FileError(f"{path} is not JSON, or not all of it is there") from None
    if not isinstance(document, dict) or not {"schema", "machine", "runs", "failures"} <= document.keys():
        raise FileError(f"{path} was not written by versus.py --json")
    if document["schema"] != SCHEMA:
        raise FileError(f"{path} has version {document['schema']} of the format, this reads version {SCHEMA}")
    machine = document["machine"]
    try:
        results = Results.from_json(document)
        if not {"cpu", "cores", "kernel", "python", "commit", "versions"} <= machine.keys():
            raise ValueError("the description of the machine is not complete")
        machine["versions"].values()
        unknown = (results.runs.keys() | results.failures.keys()) - SCENARIOS.keys()
        if unknown:
            raise ValueError(f"no scenario {min(unknown)!r} is known here")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FileError(f"{path} is damaged: {what}") from None
    return results, machine
