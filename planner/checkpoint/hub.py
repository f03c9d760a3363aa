"""A model of the Hugging Face hub: its configuration and tensor headers, and never its weights.

What was read is kept among the hub client's assets, so that a commit is read once and can be planned without a network.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

from planner import __version__
from planner.checkpoint.jsonfile import MAX_BYTES, parse_object, read_bytes
from planner.checkpoint.safetensors import (
    MAX_HEADER,
    PREFIX,
    Header,
    header_length,
    merged,
    parse_header,
    read_headers,
    weight_files,
)
from planner.errors import CardError, HubError, KvplanError
from planner.files import writing

CONFIG = "config.json"
QUANTIZATION = "hf_quant_config.json"
FIRST_BYTES = 100_000
"""Asked for first of every weight file; most headers are shorter."""
PARALLEL = 8
PATIENCE = 3
"""How many times the timeout of one wait an answer may take in all, and a second more for every ``SLOWEST`` bytes."""
SLOWEST = 100_000

_REPOSITORY = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[\w][\w.-]*/[\w]([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w./@+-]{1,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """What a repository says about its model at one commit.

    Attributes
    ----------
    revision
        The commit, if it is known.
    config
        Its ``config.json``.
    quantization
        Its ``hf_quant_config.json``, if it has one.
    headers
        Of all tensors of its safetensors files; empty if it has none.
    """

    repo_id: str
    revision: str | None
    config: dict[str, Any]
    quantization: dict[str, Any] | None
    headers: tuple[Header, ...]


def fetch(repo_id: str, revision: str | None = None) -> Snapshot:
    """Read a model's configuration and tensor headers from the hub, or from the cache if the hub is out of reach.

    ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_HUB_DOWNLOAD_TIMEOUT`` mean what they do to
    the hub's own client.

    Parameters
    ----------
    repo_id
        ``owner/name``.
    revision
        A branch, tag or commit; by default ``main``.

    Raises
    ------
    HubError
        If the client is not installed, or the model is missing, gated, damaged or out of reach.
    """
    if len(repo_id) > 96 or not _REPOSITORY.fullmatch(repo_id):
        raise HubError(f"{repo_id[:60]!r} is no repository of the hub; write owner/name, such as Qwen/Qwen3-8B")
    revision = "main" if revision is None else revision
    if not _REVISION.fullmatch(revision):
        raise HubError(f"{revision[:60]!r} is no revision; name a branch, a tag or a commit")
    remote = _connect(repo_id, revision)
    if _COMMIT.fullmatch(revision) and (kept := _recall(repo_id, revision)):
        return kept
    try:
        return remote.snapshot()
    except _OutOfReachError:
        found = _recall(repo_id, revision) or _downloaded(repo_id, revision)
        if found is None:
            raise
        return found
    except CardError as error:
        what, _, remedy = str(error).rpartition("; ")  # which would do for a file at home
        raise HubError(f"{what or remedy}; see {remote.page}") from None


class _OutOfReachError(HubError):
    """The hub cannot be asked now; what is in the cache may do."""


def _connect(repo_id: str, revision: str) -> _Remote:
    """The repository as the hub's client would reach it."""
    try:
        from huggingface_hub import constants, get_session, get_token
    except ImportError:
        raise HubError(f"{repo_id} is on the Hugging Face hub; pip install 'kvplan[hub]' to read it") from None
    try:
        session, token = get_session(), None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:  # of its file, or of renewing it
        raise HubError(f"the hub's token cannot be read ({_line(error)}); set HF_TOKEN") from None
    sent = {"User-Agent": f"kvplan/{__version__}"}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    return _Remote(repo_id, revision, constants.ENDPOINT, session, sent, float(constants.HF_HUB_DOWNLOAD_TIMEOUT))


@dataclass(frozen=True)
class _Remote:
    """A repository at one revision, and how to ask for it.

    Attributes
    ----------
    session
        The hub client's, of httpx.
    sent
        HTTP headers of every request.
    timeout
        Longest wait for anything to arrive [s].
    """

    repo_id: str
    revision: str
    endpoint: str
    session: Any
    sent: Mapping[str, str]
    timeout: float

    @property
    def page(self) -> str:
        """The repository's page, for people."""
        return f"{self.endpoint}/{self.repo_id}"

    def snapshot(self) -> Snapshot:
        """Read everything that is not in the cache."""
        revision = quote(self.revision, safe="")
        listing = "its list of files"
        url = f"{self.endpoint}/api/models/{self.repo_id}/revision/{revision}"
        answer = parse_object(self._whole(url, listing), f"{self.repo_id}: {listing}")
        commit, siblings = answer.get("sha"), answer.get("siblings")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
            raise HubError(f"{self.endpoint} does not answer as the hub does; check HF_ENDPOINT")
        found = _recall(self.repo_id, commit) or self._at(commit, _names(siblings))
        _keep(found, self.revision)
        return found

    def _at(self, commit: str, names: Collection[str]) -> Snapshot:
        """Read the files of a commit."""
        if CONFIG not in names:
            raise self._without_config(names)
        base = f"{self.page}/resolve/{commit}"

        def read(name: str, limit: int = MAX_BYTES) -> bytes:
            return self._whole(f"{base}/{quote(name)}", name, limit)

        config = parse_object(read(CONFIG), f"{self.repo_id}: {CONFIG}")
        quantization = None
        if QUANTIZATION in names:
            quantization = parse_object(read(QUANTIZATION), f"{self.repo_id}: {QUANTIZATION}")
        files = weight_files(names, self.repo_id, lambda name: read(name, MAX_HEADER))
        with ThreadPoolExecutor(PARALLEL) as pool:
            each = pool.map(lambda name: self._headers(f"{base}/{quote(name)}", name), files)
            headers = merged(zip(files, each, strict=True), self.repo_id)
        return Snapshot(self.repo_id, commit, config, quantization, headers)

    def _headers(self, url: str, name: str) -> tuple[Header, ...]:
        """Tensor headers of one weight file."""
        where = f"{self.repo_id}: {name}"
        data, size = self._get(url, name, FIRST_BYTES, part=True)
        length = header_length(data, where, size)
        if len(data) < PREFIX + length:
            data, size = self._get(url, name, PREFIX + length, part=True)
        if len(data) < PREFIX + length:
            raise self._cut_off(name)
        return parse_header(data[PREFIX : PREFIX + length], where, size and size - PREFIX - length)

    def _whole(self, url: str, what: str, limit: int = MAX_BYTES) -> bytes:
        """All bytes of a small file."""
        data, _ = self._get(url, what, limit + 1)
        if len(data) > limit:
            raise HubError(f"{self.repo_id}: {what} has more than {limit:,} bytes; see {self.page}")
        return data

    def _get(self, url: str, what: str, most: int, part: bool = False) -> tuple[bytes, int | None]:
        """The first bytes of a file, at most so many, and the size of all of it where that is said [B]."""
        wanted = {"Range": f"bytes=0-{most - 1}", "Accept-Encoding": "identity"} if part else {}
        until = monotonic() + PATIENCE * self.timeout
        data = bytearray()
        try:
            sent = {**self.sent, **wanted}
            with self.session.stream("GET", url, headers=sent, timeout=self.timeout, follow_redirects=True) as response:
                if response.status_code not in (200, 206):
                    raise self._refused(response.status_code, response.headers, what)
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) >= most:
                        break
                    if monotonic() > until + len(data) / SLOWEST:
                        raise self._slow(what)
                return bytes(data[:most]), _size(response) if part else None
        except HubError:
            raise
        except Exception as error:  # of httpx, or of the client's hooks
            raise self._failed(error, what) from None

    def _refused(self, status: int, answer: Mapping[str, str], what: str) -> HubError:
        """What a status other than success means."""
        login = "set HF_TOKEN or run 'hf auth login'"
        code = answer.get("X-Error-Code", "")
        if code == "GatedRepo":
            return HubError(f"{self.repo_id} is gated: accept its terms at {self.page}, then {login}")
        if code == "RevisionNotFound":
            return HubError(f"{self.repo_id} has no revision {self.revision!r}; see {self.page}/tree/main")
        if status == 401 and "credentials" in answer.get("X-Error-Message", "").lower():
            return HubError(f"{self.endpoint} does not accept the token; set another HF_TOKEN or run 'hf auth login'")
        if code == "RepoNotFound" or (not code and status in (401, 404)):
            return HubError(
                f"{self.endpoint} has no repository {self.repo_id}, or keeps it private; check the spelling, or {login}"
            )
        if status == 403:
            return HubError(f"{self.repo_id}: no permission to read {what}; see {self.page}, or {login}")
        if status in (408, 429) or status >= 500:
            return _OutOfReachError(f"{self.endpoint} is too busy (HTTP {status}); try again later")
        return HubError(f"{self.repo_id}: {self.endpoint} answers {what} with HTTP {status}; see {self.page}")

    def _failed(self, error: Exception, what: str) -> HubError:
        """What an exception of the client means; its classes are known by name, as their home changes with versions."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "OfflineModeIsEnabled" in kinds:
            return _OutOfReachError(f"{self.repo_id} is not in the cache, and HF_HUB_OFFLINE is set; unset it")
        if "TimeoutException" in kinds or "timed out" in str(error):
            return self._slow(what)
        if kinds & {"RemoteProtocolError", "ReadError", "DecodingError"}:
            return self._cut_off(what)
        return _OutOfReachError(
            f"cannot reach {self.endpoint} ({_line(error)}), and {self.repo_id} is not in the cache; check the network"
        )

    def _slow(self, what: str) -> HubError:
        return _OutOfReachError(
            f"{self.repo_id}: timed out waiting for {what}; try again, or set HF_HUB_DOWNLOAD_TIMEOUT above"
            f" {self.timeout:g} seconds"
        )

    def _cut_off(self, what: str) -> HubError:
        return _OutOfReachError(f"{self.repo_id}: the connection was cut off while reading {what}; try again")

    def _without_config(self, names: Collection[str]) -> HubError:
        """What to do about a repository that has no configuration."""
        if file := next((name for name in sorted(names) if name.lower().endswith(".gguf")), None):
            command = f"hf download {self.repo_id} {shlex.quote(file[:100])}"
            return HubError(f"{self.repo_id} holds GGUF files; download one and name it, such as by {command}")
        return HubError(f"{self.repo_id} has no config.json, so it is no model of transformers; see {self.page}")


def _names(siblings: list[Any]) -> frozenset[str]:
    """File names in a repository's listing."""
    names = (entry.get("rfilename") for entry in siblings if isinstance(entry, dict))
    return frozenset(name for name in names if isinstance(name, str) and name.isprintable())


def _size(response: Any) -> int | None:
    """Size of the file that an answer holds or is a part of, where it is said [B]."""
    answer, said = response.headers, ""
    if response.status_code == 206:
        said = answer.get("Content-Range", "").rpartition("/")[2]
    elif "Content-Encoding" not in answer:
        said = answer.get("Content-Length", "")
    return int(said) if said.isdecimal() and len(said) < 19 else None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _folder(repo_id: str) -> Path:
    from huggingface_hub import cached_assets_path

    return cached_assets_path("kvplan", namespace=repo_id, subfolder="snapshots")


def _keep(found: Snapshot, revision: str) -> None:
    """Write a snapshot and what its revision was called, if that can be done."""
    headers = [(header.name, header.dtype, header.shape, header.nbytes) for header in found.headers]
    kept = {"config": json.dumps(found.config), "quantization": json.dumps(found.quantization), "headers": headers}
    with suppress(KvplanError, OSError, ValueError):
        folder = _folder(found.repo_id)
        target = folder / f"{found.revision}.json"
        if not target.exists():
            with writing(target) as stream:
                json.dump(kept, stream)
        if revision != found.revision:
            with writing(folder / f"{quote(revision, safe='')}.ref") as stream:
                stream.write(str(found.revision))


def _recall(repo_id: str, revision: str) -> Snapshot | None:
    """A snapshot that was kept, or none if it was not or is damaged."""
    with suppress(KvplanError, OSError, KeyError, TypeError, ValueError):
        folder = _folder(repo_id)
        commit = revision
        if not _COMMIT.fullmatch(commit):
            commit = read_bytes(folder / f"{quote(revision, safe='')}.ref").decode()
        kept = parse_object(read_bytes(folder / f"{commit}.json", MAX_HEADER), commit)
        headers = tuple(Header(name, dtype, tuple(shape), size) for name, dtype, shape, size in kept["headers"])
        return Snapshot(repo_id, commit, json.loads(kept["config"]), json.loads(kept["quantization"]), headers)
    return None


def _downloaded(repo_id: str, revision: str) -> Snapshot | None:
    """A snapshot of what other programs left in the hub client's own cache."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(KvplanError, OSError, ValueError):
        path = try_to_load_from_cache(repo_id, CONFIG, revision=revision)
        if not isinstance(path, str):
            return None
        config = Path(path)
        beside = config.with_name(QUANTIZATION)
        headers: tuple[Header, ...] = ()
        with suppress(CardError):
            headers = read_headers(config.parent)
        return Snapshot(
            repo_id,
            config.parent.name,
            parse_object(read_bytes(config), str(config)),
            parse_object(read_bytes(beside), str(beside)) if beside.is_file() else None,
            headers,
        )
    return None
