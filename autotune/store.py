"""Where rows are kept: append-only journals, one a writer, and a directory of them is read as one.

Nobody writes into another's file, so nothing is lost and nothing needs a lock. A writer that is killed leaves at most
one line without an end, which readers drop. ``compact`` makes one file of the journals whose writers have gone. A
directory that cannot be written to is said once; what was measured then lives as long as the process.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from .rows import VERSION, Row, fault_of, identity, text_of

if TYPE_CHECKING:
    from filelock import FileLock

_FAULTS = {
    "foreign": "not rows of a tilesmith cache",
    "future": f"of a newer tilesmith (this one reads format {VERSION})",
    "damaged": "damaged",
}
_LISTINGS = 10  # of the directory, while others move its files
_OURS = re.compile(r".+-\d+-[0-9a-f]{12}\.jsonl|compact-[0-9a-f]{32}\.jsonl")
_LOCK_SECONDS = 30.0  # that compact waits for another one


def cache_directory() -> Path:
    """``TILESMITH_CACHE``, else ``tilesmith`` in the user's cache directory. It need not exist."""
    if named := os.environ.get("TILESMITH_CACHE"):
        return Path(os.path.expanduser(named))
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if str(home).startswith("~"):  # nobody's home, as in some containers
        home = Path(tempfile.gettempdir())
    return home / "tilesmith"


class _Reader:
    """A file that grows: each reading goes on where the last one ended, at the end of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._identity: tuple[int, int] | None = None
        self._read = 0
        self._said: set[str] = set()

    def refresh(self) -> bool:
        """Reads what is new; whether there was anything.

        Raises:
            FileNotFoundError: it has gone; what was in it may be in another file by now.
        """
        try:
            status = self.path.stat()
            if (status.st_dev, status.st_ino) != self._identity or status.st_size < self._read:
                self._identity, self._read, self.rows = (status.st_dev, status.st_ino), 0, []
            if status.st_size == self._read:
                return False
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            self._say(f"cannot be read ({error.strerror}) and is ignored")
            return False
        whole = data.rfind(b"\n") + 1  # what follows is being written, or never was finished
        self._read += whole
        self.rows.extend(self._good(data[:whole].split(b"\n")))
        return whole > 0

    def _good(self, lines: Iterable[bytes]) -> Iterator[Row]:
        faults: dict[str, int] = {}
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = {"v": VERSION, "kind": "time"} if line.lstrip().startswith(b'{"') else None
            fault = fault_of(row)
            if fault is None:
                yield row
            else:
                faults[fault] = faults.get(fault, 0) + 1
        for fault, count in faults.items():
            self._say(f"{count} line{'s are' if count > 1 else ' is'} {_FAULTS[fault]} and ignored")

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(f"cache file {self.path}: {what}", stacklevel=4)


class Store:
    """Rows in a directory, or only in memory.

    Args:
        directory: of ``*.jsonl`` files; made when the first row is written. A file is read alone. ``None``: memory.
        writable: whether rows may be added.
    """

    def __init__(self, directory: Path | None, writable: bool = True) -> None:
        self.directory = directory
        self._lock = RLock()
        self._readers: dict[Path, _Reader] = {}
        self._own: list[Row] = []  # what could not be written, or is nobody else's business
        self._journal: _Journal | None = None
        self._writable = writable and (directory is None or not os.path.isfile(directory))
        self._to_memory = directory is None

    def rows(self) -> list[Row]:
        """All of them, without second copies, in the order of files and lines."""
        with self._lock:
            self.refresh()
            found = {identity(row): row for reader in self._readers.values() for row in reader.rows}
            found.update((identity(row), row) for row in self._own)
            return list(found.values())

    def refresh(self) -> bool:
        """Reads what others have written since; whether anything is new."""
        with self._lock:
            changed = False
            for _ in range(_LISTINGS):
                paths = self._paths()
                changed |= self._readers.keys() != set(paths)
                self._readers = {path: self._readers.get(path) or _Reader(path) for path in paths}
                try:
                    grown = [reader.refresh() for reader in self._readers.values()]
                except FileNotFoundError:  # somebody compacts: what was in it is in a file that was not listed
                    changed = True
                    continue
                return any(grown) or changed
            return changed

    def _paths(self) -> list[Path]:
        if self.directory is None:
            return []
        if os.path.isfile(self.directory):
            return [self.directory]
        try:
            return sorted(p for p in self.directory.iterdir() if p.suffix == ".jsonl")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            warnings.warn(f"cache {self.directory} cannot be read: {error.strerror}", stacklevel=4)
            return []

    def append(self, *rows: Row) -> None:
        """Adds rows, on disk at once and all or none of them, where there is a disk to write to.

        Raises:
            OSError: the store is read-only.
        """
        with self._lock:
            if not self._writable:
                raise OSError(f"{self.directory} is only read from")
            if self._to_memory:
                self._own += rows
                return
            assert self.directory is not None
            try:
                if self._journal is None or not self._journal.is_ours():
                    self._journal = _Journal(self.directory)
                    atexit.register(self.close)
                self._journal.write(rows)
            except OSError as error:
                self._to_memory = True
                self._own += rows
                warnings.warn(
                    f"cache {self.directory} cannot be written to ({error.strerror or error}): "
                    "what is measured now is forgotten when this process ends",
                    stacklevel=3,
                )

    def add(self, rows: Iterable[Row]) -> int:
        """Appends those that it does not have yet; how many these were."""
        known = {identity(row) for row in self.rows()}
        new = {name: row for row in rows if (name := identity(row)) not in known}
        for row in new.values():
            self.append(row)
        return len(new)

    def close(self) -> None:
        """Ends this writer's journal, so that ``compact`` may take it."""
        with self._lock:
            if self._journal is not None:
                if self._journal.owner == os.getpid():
                    self._journal.close()
                self._journal = None

    @property
    def kept(self) -> bool:
        """Whether what is appended outlives this process."""
        return not self._to_memory

    def clear(self) -> int:
        """Deletes the cache's own files, but for those that a living process writes to. How many rows that were."""
        self.close()
        with self._lock:
            if self.directory is None or not self.directory.is_dir():
                return 0
            before = len(self.rows())
            for path in sorted(self.directory.glob("*.jsonl")):
                lock = _locked(path) if _OURS.fullmatch(path.name) else None
                if lock is not None:
                    path.unlink(missing_ok=True)
                    lock.release()
                    _lock_of(path).unlink(missing_ok=True)
            return before - len(self.rows())

    def compact(self) -> tuple[int, int]:
        """Makes one file of all journals whose writers have ended; no row is lost, second copies go.

        Lines that are not ours stay where they are, and so does their file.

        Returns:
            How many files became one, and how many rows it has.

        Raises:
            OSError: another compaction takes longer than half a minute, or the directory cannot be written to.
        """
        from filelock import FileLock, Timeout

        self.close()
        with self._lock:
            if self.directory is None or not self.directory.is_dir():
                return 0, 0
            try:
                with FileLock(self.directory / "compact.lock", timeout=_LOCK_SECONDS):
                    return self._compact(self.directory)
            except Timeout:
                raise OSError(f"{self.directory}: another compaction holds {self.directory / 'compact.lock'}") from None

    def _compact(self, directory: Path) -> tuple[int, int]:
        taken: list[tuple[Path, FileLock]] = []
        rows: dict[str, Row] = {}
        try:
            for path in sorted(directory.glob("*.jsonl")):
                lock = _locked(path)
                if lock is None:
                    continue  # its writer lives
                taken.append((path, lock))
            spared: set[Path] = set()
            for path, _ in taken:
                reader = _Reader(path)
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    reader.refresh()
                if said or not _OURS.fullmatch(path.name):
                    spared.add(path)
                    continue
                rows.update((identity(row), row) for row in reader.rows)
            merged = [path for path, _ in taken if path not in spared]
            if len(merged) < 2:
                return 0, len(rows)
            target = directory / f"compact-{uuid.uuid4().hex}.jsonl"
            draft = target.with_suffix(".draft")
            with draft.open("x", encoding="utf-8") as file:
                file.writelines(text_of(row) + "\n" for row in rows.values())
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)  # from here on the journals are second copies
            for path in merged:
                path.unlink()
            return len(merged), len(rows)
        finally:
            for path, lock in taken:
                lock.release()
                _lock_of(path).unlink(missing_ok=True)


def _lock_of(journal: Path) -> Path:
    return journal.with_suffix(".lock")


def _locked(journal: Path) -> FileLock | None:
    """The journal's lock, taken; ``None`` if its writer has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_of(journal), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


class _Journal:
    """This process's file. Its lock is held while the process lives: that is how others know."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.owner = os.getpid()
        self.path = directory / f"{socket.gethostname()}-{self.owner}-{uuid.uuid4().hex[:12]}.jsonl"
        self._lock = _locked(self.path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)

    def is_ours(self) -> bool:
        """Whether this process made it, and it was not deleted meanwhile."""
        return self.owner == os.getpid() and os.fstat(self._file).st_nlink > 0

    def write(self, rows: Sequence[Row]) -> None:
        lines = "".join(text_of(row) + "\n" for row in rows).encode()
        written = os.write(self._file, lines)
        if written != len(lines):
            raise OSError(f"only {written} of {len(lines)} bytes could be written")

    def close(self) -> None:
        os.close(self._file)
        if self._lock is not None:
            self._lock.release()
        _lock_of(self.path).unlink(missing_ok=True)
