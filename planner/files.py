"""Write files whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    with _writing(path, {"mode": "w", "encoding": "utf-8", "newline": ""}) as stream:
        yield stream


@contextmanager
def writing_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """As `writing`, for what is not text."""
    with _writing(path, {"mode": "wb"}) as stream:
        yield stream


@contextmanager
def _writing(path: str | Path, how: dict[str, Any]) -> Iterator[IO[Any]]:
    """A stream that becomes the file, opened as ``how`` says."""
    if str(path) == "-":
        standard: Any = sys.stdout.buffer if "b" in how["mode"] else sys.stdout
        yield standard
        standard.flush()
        return
    target = Path(os.path.realpath(path))  # what a link points to, so that the link stays one
    try:
        if target.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; name a file")
        with _plain(target, how) if target.exists() and not target.is_file() else _replacing(target, how) as stream:
            yield stream
    except OSError as error:
        shown = str(path) if len(str(path)) <= 100 else str(path)[:97] + "..."
        raise OutputError(f"cannot write {shown}: {error.strerror or error}; choose another file") from None


def _plain(target: Path, how: dict[str, Any]) -> Any:
    """A pipe or device: there is nothing to replace."""
    return target.open(**how)


@contextmanager
def _replacing(target: Path, how: dict[str, Any]) -> Iterator[IO[Any]]:
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, **how) as stream:
            yield stream
        temporary.chmod(mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
