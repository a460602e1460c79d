"""Files and folders that are there whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when all of it is written, and leaves nothing behind when it is not."""
    path = Path(path)
    unfinished = unfinished_name(path)
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def unfinished_name(path: Path) -> Path:
    """A name beside ``path`` that says whose it is. Removes what processes of this machine left there that are gone."""
    start = f".{path.name}.{socket.gethostname()}."
    for other in path.parent.glob(start.replace("[", "[[]") + "*"):
        process, _, _ = other.name.removeprefix(start).partition("-")
        if process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
