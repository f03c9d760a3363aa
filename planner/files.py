"""Write files whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from planner.errors import OutputError


@contextmanager
def writing(path: str | Path) -> Iterator[IO[str]]:
    """A text stream that becomes the file when the block ends without an error; ``-`` is standard output.

    The text goes to a temporary name beside the target, which is then renamed, so a reader never sees half a file and a
    failure leaves what was there before.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if str(path) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; name a file")
    try:
        with _plain(target) if target.exists() and not target.is_file() else _replacing(target) as stream:
            yield stream
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; choose another file") from None


def _plain(target: Path) -> IO[str]:
    """A pipe or device: there is nothing to replace."""
    return target.open("w", encoding="utf-8", newline="")


@contextmanager
def _replacing(target: Path) -> Iterator[IO[str]]:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            yield stream
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
