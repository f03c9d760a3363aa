"""The hub as its client sees it, played by a server on this machine: what is read, what is kept, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import unquote
from zlib import crc32

import numpy as np
import pytest
from safetensors.numpy import save

from planner.checkpoint.hub import fetch
from planner.errors import HubError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"model_type": "llama", "hidden_size": 8}
TOKEN = "hf_secret"
BIG = 2**25
ASK = """
import json, sys
from dataclasses import asdict
from planner.checkpoint.hub import fetch
from planner.errors import HubError
for name in sys.argv[1:]:
    try:
        print(json.dumps(asdict(fetch(*name.split("@")))))
    except HubError as error:
        print(json.dumps(str(error)))
"""


@dataclass
class Repo:
    """Files of a repository, and how the server behaves when it is asked for them."""

    files: dict[str, bytes]
    listing: tuple[int, str] = (200, "")
    status: tuple[int, str] = (200, "")
    manner: str = ""


@dataclass
class Hub:
    """A hub, and the store of large files that it sends its clients to."""

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: dict[str, set[str | None]] = field(default_factory=lambda: {"hub": set(), "store": set()})
    served: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['hub']}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, or badly."""

    hub: Hub
    host: str
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers["Range"]))
        self.hub.tokens[self.host].add(self.headers["Authorization"])
        with suppress(ConnectionError):
            path = self.path.lstrip("/")
            if path.startswith("api/models/"):
                self.list_files(*path.removeprefix("api/models/").split("/revision/"))
            else:
                self.send_file(*path.split("/resolve/"))

    def list_files(self, name: str, revision: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self.send(b"", 401, "RepoNotFound")
        elif unquote(revision) not in ("main", "refs/pr/1", COMMIT):
            self.send(b"", 404, "RevisionNotFound")
        elif repo.manner == "html":
            self.send(b"<html>Please log in to the hotel's network</html>")
        else:
            siblings = [{"rfilename": file} for file in repo.files]
            self.send(json.dumps({"sha": COMMIT, "siblings": siblings}).encode(), *repo.listing)

    def send_file(self, name: str, rest: str) -> None:
        file, repo = unquote(rest.partition("/")[2]), self.hub.repos[name]
        if repo.status[0] != 200:
            self.send(b"", *repo.status)
        elif file not in repo.files:
            self.send(b"", 404, "EntryNotFound")
        elif file.endswith(".safetensors") and self.host == "hub":
            elsewhere = f"http://127.0.0.1:{self.hub.ports['store']}{self.path}"
            self.send(b"", 302, location=elsewhere, size=len(repo.files[file]))
        else:
            cut = repo.manner == "cut weights" and file.endswith(".safetensors")
            self.send(repo.files[file], manner="cut off" if cut else repo.manner)

    def send(
        self, data: bytes, status: int = 200, code: str = "", location: str = "", manner: str = "", size: int = 0
    ) -> None:
        size = size or len(data)
        wanted = self.headers["Range"] if manner != "no ranges" else None
        if wanted and status == 200:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1], 206
        headers = {
            "Content-Length": len(data),
            "Content-Range": f"bytes 0-{len(data) - 1}/{size}" if status == 206 else "",
            "ETag": f'"{crc32(self.path.encode())}"',
            "Location": location,
            "X-Error-Code": code if " " not in code else "",
            "X-Error-Message": code if " " in code else "",
            "X-Linked-Size": size if location else "",
            "X-Repo-Commit": COMMIT,
        }
        self.send_response(status)
        for key, value in headers.items():
            if value != "":
                self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.send_body(data, manner)

    def send_body(self, data: bytes, manner: str) -> None:
        if manner == "silent":
            self.hub.closing.wait(5)
        elif manner == "cut off":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif manner == "dripping":
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                if self.hub.closing.wait(0.5):
                    return
        else:
            for start in range(0, len(data), 2**16):
                self.wfile.write(data[start : start + 2**16])
                self.hub.served += len(data[start : start + 2**16])


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    servers = []
    for host in ("hub", "store"):
        handler = type("Bound", (Handler,), {"hub": hub, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads, server.block_on_close = True, False
        hub.ports[host] = server.server_port
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
    yield hub
    hub.closing.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(hub: Hub, home: Path, *names: str, code: str = ASK, **environment: str) -> list[Any]:
    """What another process, which has this hub and this home of the client's, fetches or is told."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    theirs = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**mine, **theirs, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def model(**tensors: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": save(tensors)}


def test_a_model_is_read_without_its_weights(hub: Hub, tmp_path: Path) -> None:
    quantization = {"quantization": {"quant_algo": "FP8"}}
    repo = Repo(model(w=np.zeros((2, BIG // 2), np.uint8)))
    repo.files["hf_quant_config.json"] = json.dumps(quantization).encode()
    hub.repos["org/model"] = repo
    assert ask(hub, tmp_path, "org/model") == [
        {
            "repo_id": "org/model", "revision": COMMIT, "config": CONFIG, "quantization": quantization,
            "headers": [{"name": "w", "dtype": "U8", "shape": [2, BIG // 2], "nbytes": BIG}],
        }
    ]  # fmt: skip
    weights = [wanted for _, path, wanted in hub.asked if path.endswith(".safetensors")]
    assert weights == ["bytes=0-99999"] * 2  # once of the hub, once of the store that it sends us to
    assert hub.served < 120_000
    assert hub.tokens == {"hub": {f"Bearer {TOKEN}"}, "store": {None}}


def test_a_server_without_ranges_is_left_after_the_header(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(model(w=np.zeros(BIG, np.uint8)), manner="no ranges")
    (found,) = ask(hub, tmp_path, "org/model")
    assert found["headers"][0]["nbytes"] == BIG
    assert hub.served < BIG // 2


def test_shards_and_long_headers(hub: Hub, tmp_path: Path) -> None:
    files = {f"model-{i:05}-of-00003.safetensors": {f"a.{i}.{j}": np.zeros(1, np.uint8) for j in range(2000)}
             for i in (1, 2, 3)}  # fmt: skip
    places = {tensor: file for file, tensors in files.items() for tensor in tensors}
    contents = {file: save(tensors) for file, tensors in files.items()}
    assert all(len(data) > 100_000 for data in contents.values())
    index = {"model.safetensors.index.json": json.dumps({"weight_map": places}).encode()}
    config = {"config.json": json.dumps(CONFIG).encode(), "consolidated.safetensors": b"not read"}
    hub.repos["org/whole"] = Repo(config | index | contents)
    hub.repos["org/unlisted"] = Repo(config | contents)
    contents.pop("model-00002-of-00003.safetensors")
    hub.repos["org/torn"] = Repo(config | index | contents)
    whole, unlisted, torn = ask(hub, tmp_path, "org/whole", "org/unlisted@refs/pr/1", "org/torn")
    assert {h["name"] for h in whole["headers"]} == places.keys()
    assert len(whole["headers"]) == len(places)
    assert unlisted["headers"] == whole["headers"]
    assert torn.startswith("org/torn: the shard 'model-00002-of-00003.safetensors' is missing")


def test_a_model_without_safetensors_has_no_headers(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo({"config.json": b'{"a": 1}', "pytorch_model.bin": b"", "onnx/model.safetensors": b""})
    (found,) = ask(hub, tmp_path, "org/model")
    assert (found["config"], found["headers"], found["quantization"]) == ({"a": 1}, [], None)


def test_refusals_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    files = model(w=np.zeros(3, np.uint8))
    weights = files["model.safetensors"]
    login = "set HF_TOKEN or run 'hf auth login'"
    cases = {
        "org/gone": (None, f"has no repository org/gone, or keeps it private; check the spelling, or {login}"),
        "org/renamed": (Repo(files, listing=(404, "")), "has no repository org/renamed"),
        "org/model@v9": (Repo(files), f"org/model has no revision 'v9'; see {hub.url}/org/model/tree/main"),
        "org/gated": (
            Repo(files, status=(401, "GatedRepo")),
            f"org/gated is gated: accept its terms at {hub.url}/org/gated, then {login}",
        ),
        "org/denied": (Repo(files, status=(403, "GatedRepo")), "org/denied is gated: accept its terms at"),
        "org/forbidden": (Repo(files, status=(403, "")), "no permission to read config.json"),
        "org/token": (
            Repo(files, listing=(401, "Invalid credentials in Authorization header")),
            "does not accept the token; set another HF_TOKEN",
        ),
        "org/busy": (Repo(files, listing=(429, "")), "is too busy (HTTP 429); try again later"),
        "org/down": (Repo(files, status=(503, "")), "is too busy (HTTP 503); try again later"),
        "org/teapot": (Repo(files, status=(418, "")), "answers config.json with HTTP 418; see"),
        "org/hotel": (Repo(files, manner="html"), "org/hotel: its list of files: not valid JSON"),
        "org/broken": (
            Repo(files | {"config.json": b'{"a": '}),
            "org/broken: config.json: not valid JSON: Expecting value",
        ),
        "org/list": (Repo(files | {"config.json": b"[]"}), "org/list: config.json: holds a list"),
        "org/huge": (Repo(files | {"config.json": b" " * 9_000_000}), "config.json has more than 8,388,608 bytes"),
        "org/quant": (Repo(files | {"hf_quant_config.json": b"{"}), "hf_quant_config.json: not valid JSON"),
        "org/short": (
            Repo(files | {"model.safetensors": weights[:-1]}),
            f"cut off: its tensors have 3 bytes, of which 2 are there; see {hub.url}/org/short",
        ),
        "org/tiny": (Repo(files | {"model.safetensors": b"1234"}), "model.safetensors: too short for safetensors"),
        "org/lfs": (Repo(files | {"model.safetensors": b"version https://git-lfs"}), "a pointer of Git LFS"),
        "org/long": (Repo(files | {"model.safetensors": b"\xff" * 99}), "no safetensors file, or its header"),
        "org/out": (
            Repo({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"w": "../x.safetensors"}}'}),
            "names '../x.safetensors', no safetensors file beside it; see",
        ),
        "org/gguf": (
            Repo({"b/Q8.gguf": b"", "a Q4.GGUF": b""}),
            "holds GGUF files; download one and name it, such as by hf download org/gguf 'a Q4.GGUF'",
        ),
        "org/empty": (Repo({"README.md": b""}), "org/empty has no config.json"),
        "org/cut": (Repo(files, manner="cut off"), "the connection was cut off while reading config.json; try again"),
    }
    hub.repos.update({name.partition("@")[0]: repo for name, (repo, _) in cases.items() if repo})
    for (name, (_, says)), said in zip(cases.items(), ask(hub, tmp_path, *cases), strict=True):
        assert isinstance(said, str), name
        assert says in said, name
        assert said.isprintable(), name


@pytest.mark.parametrize("manner", ["silent", "dripping"])
def test_a_slow_server_is_not_waited_for(hub: Hub, tmp_path: Path, manner: str) -> None:
    hub.repos["org/slow"] = Repo(model(), manner=manner)
    start = perf_counter()
    (said,) = ask(hub, tmp_path, "org/slow")
    assert "timed out waiting for config.json; try again, or set HF_HUB_DOWNLOAD_TIMEOUT above 1 seconds" in said
    assert perf_counter() - start < 8


def test_weights_that_are_cut_off(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/cut"] = Repo(model(w=np.zeros(3, np.uint8)), manner="cut weights")
    (said,) = ask(hub, tmp_path, "org/cut")
    assert said == "org/cut: the connection was cut off while reading model.safetensors; try again"


def test_a_commit_is_read_once_and_kept_for_when_there_is_no_network(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(model(w=np.zeros((3, 2), np.float16)))
    (first,) = ask(hub, tmp_path, "org/model")
    hub.asked.clear()
    assert ask(hub, tmp_path, "org/model", f"org/model@{COMMIT}") == [first, first]
    assert [path for _, path, _ in hub.asked] == ["/api/models/org/model/revision/main"]
    hub.asked.clear()
    offline = ask(hub, tmp_path, "org/model", "org/other", f"org/model@{'f' * 40}", HF_HUB_OFFLINE="1")
    assert offline[0] == first
    assert offline[1] == "org/other is not in the cache, and HF_HUB_OFFLINE is set; unset it"
    assert "is not in the cache" in offline[2]
    assert not hub.asked
    unplugged = ask(hub, tmp_path, "org/model", "org/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert unplugged[0] == first
    assert unplugged[1].startswith("cannot reach http://127.0.0.1:9 (")
    assert unplugged[1].endswith("), and org/other is not in the cache; check the network")
    hub.repos["org/model"].listing = (503, "")
    assert ask(hub, tmp_path, "org/model") == [first]


def test_damage_to_what_was_kept_only_costs_another_look(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(model(w=np.zeros(3, np.float16)))
    (first,) = ask(hub, tmp_path, "org/model")
    (kept,) = tmp_path.rglob(f"{COMMIT}.json")
    for damage in ("{", "{}", '{"config": "{}", "quantization": "null", "headers": [1]}'):
        kept.write_text(damage)
        assert ask(hub, tmp_path, "org/model") == [first]


def test_what_other_programs_downloaded_is_used(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(model(w=np.zeros(3, np.float16)))
    download = "import sys, huggingface_hub as h; h.hf_hub_download(sys.argv[1], sys.argv[2])"
    ask(hub, tmp_path, "org/model", "config.json", code=download)
    (found,) = ask(hub, tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert (found["config"], found["revision"], found["headers"]) == (CONFIG, COMMIT, [])
    ask(hub, tmp_path, "org/model", "model.safetensors", code=download)
    (found,) = ask(hub, tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert [h["nbytes"] for h in found["headers"]] == [6]


def test_a_home_that_cannot_be_written_is_no_hindrance(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/model"] = Repo(model())
    (tmp_path / "assets").write_text("a file where a folder should be")
    (found,) = ask(hub, tmp_path, "org/model")
    assert found["config"] == CONFIG


def test_without_the_client_it_says_what_to_install(hub: Hub, tmp_path: Path) -> None:
    (said,) = ask(hub, tmp_path, "org/model", code=f"import sys; sys.modules['huggingface_hub'] = None\n{ASK}")
    assert said == "org/model is on the Hugging Face hub; pip install 'kvplan[hub]' to read it"


def test_the_client_is_imported_only_when_asked(hub: Hub, tmp_path: Path) -> None:
    code = "import sys, planner.checkpoint.hub; print(int('huggingface_hub' in sys.modules))"
    assert ask(hub, tmp_path, code=code) == [0]


@pytest.mark.parametrize(
    "name", ["", "gpt2", "a/b/c", "/b", "a/", "../x", "a/..", "a--b/c", "a b/c", "a/b\n", "a/b.git", "a/b?c", "a/é",
             "https://huggingface.co/a/b", "a/" + "b" * 99]
)  # fmt: skip
def test_what_is_no_repository_is_not_asked_for(name: str) -> None:
    with pytest.raises(HubError, match="is no repository of the hub; write owner/name") as caught:
        fetch(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("revision", ["", "..", "a..b", "a b", "x\n", "?", "a" * 300])
def test_what_is_no_revision_is_not_asked_for(revision: str) -> None:
    with pytest.raises(HubError, match="is no revision; name a branch, a tag or a commit"):
        fetch("org/model", revision)
