"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import OutputError
from planner.files import writing, writing_bytes


def test_replaces_only_when_done(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    with writing(target) as stream:
        stream.write("new")
        stream.flush()
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")

    def fail_half_way() -> None:
        with writing(target) as stream:
            stream.write("half")
            raise failure

    with pytest.raises(failure):
        fail_half_way()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_unwritable_targets_say_so(tmp_path: Path) -> None:
    for bad in (tmp_path, tmp_path / "missing" / "out.csv", Path("/proc/nope.csv")):
        with pytest.raises(OutputError, match="cannot write"), writing(bad) as stream:
            stream.write("x")


def test_a_full_disk_says_so() -> None:
    if not Path("/dev/full").exists():
        return
    with pytest.raises(OutputError, match="No space left"), writing("/dev/full") as stream:
        stream.write("x" * 100_000)


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as stream:
        stream.write("x")
    plain = tmp_path / "b"
    plain.write_text("x")
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode


def test_bytes_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), writing_bytes(target) as stream:
        stream.write("text")  # type: ignore[call-overload]
    assert target.read_bytes() == b"old"
    with writing_bytes(target) as stream:
        stream.write(b"\x00\r\n\xff")
    assert target.read_bytes() == b"\x00\r\n\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
