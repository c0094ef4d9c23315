"""A small hub on 127.0.0.1 for the real huggingface_hub, transformers and datasets, with faults on demand.

``Hub(folder)`` serves what was added or uploaded to it; :func:`connected` points the clients of this process at it,
:func:`hub_environment` those of another one.
"""

import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from socket import SHUT_RDWR
from types import SimpleNamespace

from hub_files import Blob, Repository, is_large
from hub_http import Handler, Server

OTHER_BYTES = bytes(255 - byte for byte in range(256))  # for corrupted files: every byte becomes another


class Hub:
    """The server, a context manager. Faults stay until they are used up or :meth:`mend` is called."""

    def __init__(self, root: Path):
        self.blobs = Path(root) / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path without query, Range header
        self.missed: list[str] = []  # method and path of requests that no route answers
        self.connections, self.lock = set(), threading.Lock()
        self.server, self.port, self.status = None, 0, None
        self.mend()

    def __enter__(self) -> "Hub":
        self.up()
        return self

    def __exit__(self, *_):
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, repo_id: str, files: dict[str, bytes] | Path, kind: str = "model", gated: bool = False) -> str:
        """A new commit with exactly these files, and ``main`` on it; returns its hash."""
        if not isinstance(files, dict):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in Path(files).rglob("*") if p.is_file()}
        repository = self.repositories.setdefault((kind, repo_id), Repository(repo_id, kind))
        repository.gated = gated
        return repository.commit({path: self.store(data, is_large(path, len(data))) for path, data in files.items()})

    def tag(self, repo_id: str, name: str, commit: str, kind: str = "model") -> None:
        repository = self.repositories[kind, repo_id]
        repository.names[name] = repository.find(commit)

    def store(self, data: bytes, large: bool) -> Blob:
        file = self.blobs / hashlib.sha256(data).hexdigest()
        if not file.exists():
            file.write_bytes(data)
        return Blob(file, len(data), large)

    def cut(self, path_ending: str, after_bytes: int, times: int = 1) -> None:
        """The next ``times`` bodies of such a file that are longer end here, and the connection with them."""
        self.cuts[path_ending] = (after_bytes, times)

    def corrupt(self, path_ending: str, from_byte: int = 0) -> None:
        """Such files arrive with other bytes from here on, of the same length and under the same ETag."""
        self.corruptions[path_ending] = from_byte

    def delay(self, seconds: float) -> None:
        """Every answer waits so long."""
        self.seconds = seconds

    def mend(self) -> None:
        """No cuts, corruptions or delays any more."""
        self.cuts, self.corruptions, self.seconds = {}, {}, 0.0

    def down(self, status: int | None = None) -> None:
        """Refuse connections and drop the open ones; or, given a status such as 503, answer everything with it."""
        self.status = status
        if status is None and self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(SHUT_RDWR)

    def up(self) -> None:
        """Answer, on the same port as before."""
        self.status = None
        if self.server is None:
            self.server = Server(("127.0.0.1", self.port), Handler)
            self.server.hub, self.port = self, self.server.server_port
            threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def body(self, path: str, blob: Blob, start: int, stop: int) -> bytes:
        """Bytes of a file, with the faults that were asked for: corrupted, or too few of them."""
        with blob.file.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        for ending, from_byte in self.corruptions.items():
            if path.endswith(ending):
                kept = max(0, from_byte - start)
                data = data[:kept] + data[kept:].translate(OTHER_BYTES)
        with self.lock:
            for ending, (after, times) in self.cuts.items():
                if path.endswith(ending) and times > 0 and len(data) > after:
                    self.cuts[ending] = (after, times - 1)
                    return data[:after]
        return data


def hub_environment(hub: Hub, home: Path) -> dict[str, str]:
    """The whole environment for a subprocess: its clients go to this hub, without a token, and cache under ``home``."""
    unwanted = re.compile(r"(HF|HUGGING_?FACE|TRANSFORMERS)_.*|.*_proxy", re.IGNORECASE)
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
    # No counting of downloads either: that is a request to another server.
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    return {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)} | settings


def connected(hub: Hub, home: Path, monkeypatch) -> None:
    """Point the clients of this process at the hub, wherever they keep a copy of an address, a folder or a switch."""
    names = ("huggingface_hub.hf_api", "huggingface_hub.hf_file_system", "datasets.config", "transformers.utils.hub")
    api, filesystem, *_ = (importlib.import_module(name) for name in names)
    from huggingface_hub import close_session, constants

    home, cache = Path(home), Path(home) / "hub"
    downloads = home / "datasets" / "downloads"
    values = {
        "ENDPOINT": hub.url, "HF_ENDPOINT": hub.url, "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HOME": home, "HF_CACHE_HOME": home, "HF_HUB_CACHE": cache, "HUGGINGFACE_HUB_CACHE": cache,
        "HF_ASSETS_CACHE": home / "assets", "HUGGINGFACE_ASSETS_CACHE": home / "assets",
        "HF_MODULES_CACHE": home / "modules", "HF_DATASETS_CACHE": home / "datasets",
        "DOWNLOADED_DATASETS_PATH": downloads, "EXTRACTED_DATASETS_PATH": downloads / "extracted",
        "HF_TOKEN_PATH": home / "token", "HF_STORED_TOKENS_PATH": home / "stored_tokens",
        "AGENT_HARNESSES_PATH": home / "agents.json", "HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True, "HF_UPDATE_DOWNLOAD_COUNTS": False,
    }  # fmt: skip
    for module in [
        m for n, m in sys.modules.items() if n.split(".")[0] in ("huggingface_hub", "datasets", "transformers")
    ]:
        for name in values.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, type(getattr(module, name))(values[name]))
    for default in (api.api, filesystem.hffs, filesystem.hffs._api):
        monkeypatch.setattr(default, "endpoint", hub.url)
    environment = hub_environment(hub, home)
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    http = importlib.import_module("huggingface_hub.utils._http")  # waits 23 s in all before it gives up
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: time.sleep(seconds / 50)})
    monkeypatch.setattr(http, "time", impatient)
    filesystem.HfFileSystem.clear_instance_cache()
    close_session()


def tiny_pythia(folder: Path, tokenizer=None, layers: int = 2, shape: str = "pythia-14m", seed: int = 0) -> Path:
    """A folder with a model of a published shape (vocabulary 50304), half precision and random weights."""
    import torch

    from lft_edu import random_teacher

    for part in (random_teacher(shape, layers, "cpu", torch.float16, seed), tokenizer):
        if part is not None:
            part.save_pretrained(folder)
    return Path(folder)


def parquet_bytes(texts: list[str], column: str = "text") -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({column: texts}), sink)
    return sink.getvalue().to_pybytes()


def jsonl_bytes(texts: list[str], compression: str | None = None, column: str = "text") -> bytes:
    """One JSON object a line, plain or compressed: "gzip" or "zstd" (to read zstd, datasets needs zstandard)."""
    import pyarrow as pa

    lines = "".join(json.dumps({column: text}) + "\n" for text in texts).encode()
    if compression is None:
        return lines
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(lines)
    return sink.getvalue().to_pybytes()
