"""Devices as this user measured them: the profiles of ``kvplan bench``, found and read without torch.

A profile is JSON with a checksum over its contents. Plans need one section of it, ``device``: the device as a catalogue
entry with the shares of its peaks that it reached (`planner.usage`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from planner.catalog import gpu_ids, load_gpu
from planner.errors import CardError, InputError, UnknownNameError
from planner.gpu import GpuSpec
from planner.row import one_line
from planner.usage import Usage

VERSION = 1
KIND = "kvplan-bench"
MAX_BYTES = 64 * 2**20
LATEST = "measured"
"""What ``--gpu`` calls the device that was measured last."""
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,79}")
_AGAIN = "run 'kvplan bench' again, or remove the file"
_OTHER = "name a file that 'kvplan bench' wrote"


def find_gpu(name: str | Path | GpuSpec) -> GpuSpec:
    """The device that a name stands for, with what this user measured of it, if anything.

    Parameters
    ----------
    name
        An id or alias of the catalogue, the path of a catalogue file or of a profile, or ``"measured"``.

    Raises
    ------
    UnknownNameError
        If the catalogue has no such device.
    CardError
        If a file cannot be read or contradicts itself, a profile in the user's folder included.
    InputError
        If nothing has been measured.

    >>> find_gpu("h100").id
    'h100-sxm'
    """
    if not isinstance(name, (str, Path)):
        return load_gpu(name)
    text = str(name).strip()
    if text.lower() == LATEST:
        return device_of(latest_path())
    if text.lower().endswith(".json"):
        return device_of(Path(name))
    try:
        spec = load_gpu(name)
    except UnknownNameError:
        if is_id(text) and profile_path(text).is_file():  # a device that the catalogue does not list
            return device_of(profile_path(text))
        raise
    if text.lower().endswith(".toml"):
        return spec
    path = profile_path(spec.id)
    return device_of(path) if path.is_file() else spec


def is_id(text: str) -> bool:
    """Whether a text can be the id of a device, and so the name of a file."""
    return _ID.fullmatch(text) is not None


def is_file(name: object) -> bool:
    """Whether a name of a GPU is that of a file, or means the profile of the last run."""
    text = str(name).strip().lower() if isinstance(name, (str, Path)) else ""
    return text == LATEST or text.endswith((".toml", ".json"))


def device_of(path: Path) -> GpuSpec:
    """The device of a profile, with what was measured of it; of a device in the catalogue the facts are the catalogue's.

    Raises
    ------
    CardError
        If the profile cannot be used.
    """
    try:
        changed = path.stat().st_mtime_ns
    except (OSError, ValueError):
        changed = 0  # reading it says what is wrong
    return _device_of(path, changed)


@lru_cache(maxsize=32)
def _device_of(path: Path, changed: int) -> GpuSpec:
    section = contents_of(path).get("device")
    shown = str(path)[:100]
    try:
        saved = GpuSpec(**section) if section is not None else None
    except (ValidationError, TypeError) as error:
        why = one_line(error) if isinstance(error, ValidationError) else "device is no table"
        raise CardError(f"{shown} contradicts itself: {why[:200]}; {_AGAIN}") from None
    if saved is None or saved.measured is None:
        raise CardError(f"{shown} has no products, which plans need; run 'kvplan bench' without --only")
    usage = saved.measured.model_copy(update={"file": shown})
    if saved.id not in gpu_ids():
        return saved.model_copy(update={"measured": usage})
    live = load_gpu(saved.id)
    return live.model_copy(update={"measured": _rescaled(usage, saved, live)})


def _rescaled(usage: Usage, saved: GpuSpec, live: GpuSpec) -> Usage:
    """The same rates as shares of the catalogue's peaks of now, which may differ from those of then."""
    peaks = [spec.peaks.get("bf16") or max(spec.peaks.values(), default=1.0) for spec in (saved, live)]
    return usage.against(saved.bandwidth_bytes_per_s / live.bandwidth_bytes_per_s, peaks[0] / peaks[1])


# -- where profiles lie ------------------------------------------------------------------------------------------------


def user_folder(environment: Mapping[str, str] | None = None, system: str = sys.platform) -> Path:
    """Where this user's data lies: ``KVPLAN_DATA``, or as the XDG base directory specification, macOS and Windows have it.

    >>> str(user_folder({"XDG_DATA_HOME": "/data"}, "linux"))
    '/data/kvplan'
    """
    env = os.environ if environment is None else environment
    if own := env.get("KVPLAN_DATA", ""):
        return Path(own)
    if system == "win32":
        return Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "kvplan"
    if system == "darwin":
        return Path.home() / "Library" / "Application Support" / "kvplan"
    named = env.get("XDG_DATA_HOME", "")
    return (Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "share") / "kvplan"


def profile_path(device: str) -> Path:
    """Where the profile of a device lies, by its id."""
    return user_folder() / "profiles" / f"{device}.json"


def latest_path() -> Path:
    """The profile that this user measured last.

    Raises
    ------
    InputError
        If there is none.
    """
    found = (p for p in (user_folder() / "profiles").glob("*.json") if p.is_file())
    paths = sorted(found, key=lambda p: p.stat().st_mtime)
    if not paths:
        raise InputError("nothing has been measured on this machine; run 'kvplan bench' first")
    return paths[-1]


# -- what a profile holds ----------------------------------------------------------------------------------------------


def contents_of(path: str | Path) -> dict[str, Any]:
    """What a profile holds, its checksum verified and taken off.

    Raises
    ------
    CardError
        If it cannot be read, was cut short or edited, is of a newer version, or holds what is no number.
    """
    import json

    shown = str(path)[:100]
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise CardError(f"{shown} is larger than any profile; {_OTHER}")
        contents = json.loads(raw.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except OSError as error:
        raise CardError(f"cannot read {shown}: {error.strerror or error}; {_OTHER}") from None
    except (UnicodeDecodeError, RecursionError):
        raise CardError(f"{shown} is not a profile; {_OTHER}") from None
    except json.JSONDecodeError as error:
        raise CardError(f"{shown} is cut short or no JSON ({error.msg}, line {error.lineno}); {_AGAIN}") from None
    except ValueError as error:
        raise CardError(f"{shown} {error}; {_AGAIN}") from None
    if not isinstance(contents, dict) or contents.get("kind") != KIND:
        raise CardError(f"{shown} is not a profile; {_OTHER}")
    version = contents.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise CardError(
            f"{shown} is of version {version}, and this kvplan reads up to {VERSION}; install a newer kvplan"
        )
    told = contents.pop("checksum", None)
    if told != checksum(contents):
        raise CardError(f"{shown} was edited or damaged: its checksum does not match; {_AGAIN}")
    return contents


def checksum(contents: Mapping[str, Any]) -> str:
    """SHA-256 of the contents in canonical JSON."""
    import hashlib
    import json

    text = json.dumps(contents, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _no_number(text[:20])


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is no number")
