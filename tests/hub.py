"""A small hub on 127.0.0.1 for the real huggingface_hub, transformers and datasets, with faults on demand.

``Hub(folder)`` serves what was added or uploaded to it; :func:`connected` points the clients of this process at it,
:func:`hub_environment` those of another one.
"""

import base64
import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_ENDINGS = (".safetensors", ".bin", ".parquet", ".gz", ".zst")
LARGE_BYTES = 16 * 1024
DATE = "2024-01-01T00:00:00.000Z"
OTHER_BYTES = bytes(255 - byte for byte in range(256))  # for corrupted files: every byte becomes another


class Refusal(Exception):
    """An answer that is an error; the clients know which one by its code."""

    def __init__(self, status: int, code: str, message: str, commit: str = ""):
        self.status, self.message = status, message
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} | (
            {"X-Repo-Commit": commit} if commit else {}
        )


@dataclass(frozen=True)
class Blob:
    """One file's bytes, kept under their SHA-256; a large file is known by that hash, any other by git's."""

    file: Path
    size: int
    large: bool

    @property
    def oid(self) -> str:
        """What git calls it: of a large file, git sees only a pointer."""
        data = self.pointer if self.large else self.file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.file.name if self.large else self.oid

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.file.name}\nsize {self.size}\n".encode()

    def describe(self, hash_name: str) -> dict:
        large = {hash_name: self.file.name, "size": self.size, "pointerSize": len(self.pointer)}
        return {"size": self.size} | ({"lfs": large} if self.large else {})


def is_large(path: str, size: int) -> bool:
    return size > 0 and (size > LARGE_BYTES or path.endswith(LARGE_ENDINGS))


@dataclass
class Repository:
    """Commits by hash, each a dictionary from path to blob, and the names (branches, tags) of some of them."""

    id: str
    kind: str
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], branch: str = "main") -> str:
        """A commit with exactly these files; its hash depends on nothing else."""
        listing = "".join(f"{path}\0{blob.file.name}\n" for path, blob in sorted(files.items()))
        self.names[branch] = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[self.names[branch]] = files
        return self.names[branch]

    def find(self, revision: str) -> str:
        commit = self.names.get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def info(self, commit: str) -> dict:
        siblings = [{"rfilename": path, "blobId": b.oid, **b.describe("sha256")} for path, b in self.listed(commit)]
        return {"_id": commit[:24], "id": self.id, "modelId": self.id, "sha": commit, "lastModified": DATE,
                "createdAt": DATE, "private": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                "gated": "manual" if self.gated else False, "siblings": siblings}  # fmt: skip

    def listed(self, commit: str, folder: str = "") -> list[tuple[str, Blob]]:
        """The files in a folder and below it, sorted."""
        return sorted((p, b) for p, b in self.commits[commit].items() if p.startswith(f"{folder}/" if folder else ""))

    def entry(self, commit: str, path: str, expand: bool) -> dict | None:
        """A file or a folder as the hub describes it; None if there is no such thing."""
        last = {"lastCommit": {"id": commit, "title": "Files", "date": DATE}} if expand else {}
        if blob := self.commits[commit].get(path):
            return {"type": "file", "oid": blob.oid, "path": path, **blob.describe("oid"), **last}
        if self.listed(commit, path):
            return {
                "type": "directory",
                "oid": hashlib.sha1(path.encode()).hexdigest(),
                "size": 0,
                "path": path,
                **last,
            }
        return None

    def tree(self, commit: str, folder: str, recursive: bool, expand: bool) -> list[dict]:
        start = folder.count("/") + 2 if folder else 1
        below = [path.split("/") for path, _ in self.listed(commit, folder)]
        if folder and not below:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist", commit)
        paths = {"/".join(p[:n]) for p in below for n in range(start, len(p) + 1 if recursive else start + 1)}
        return [self.entry(commit, path, expand) for path in sorted(paths)]


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


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients that hang up are no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


REPO = r"(?P<repo>[^/]+(?:/(?!(?:revision|tree|paths-info|preupload|commit)(?:/|$))[^/]+)?)"
API, REVISION = rf"/api/(?P<kind>models|datasets)/{REPO}", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET HEAD", rf"/(?P<kind>datasets/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    ("GET", rf"{API}(?:/revision/{REVISION})?", "info"),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.*))?", "tree"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"{API}/paths-info/{REVISION}", "paths_info"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", rf"{API}/preupload/{REVISION}", "preupload"),
    ("POST", r"/(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/uploads/(?P<sha256>[0-9a-f]{64})", "upload"),
    ("POST", rf"{API}/commit/{REVISION}", "commit"),
]


class Handler(BaseHTTPRequestHandler):
    """One connection. Each method named in ``ROUTES`` returns what to answer as JSON, or has answered (None)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self):
        self.hub = self.server.hub
        self.hub.connections.add(self.connection)
        super().handle()
        self.hub.connections.discard(self.connection)

    def log_message(self, *_):
        pass

    def answer(self):
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, unquote(url.path), self.headers["Range"]))
        self.query = parse_qs(url.query)
        self.data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.hub.seconds)
        try:
            if self.hub.status:
                raise Refusal(self.hub.status, "", "Out of order")
            answer = self.route(url.path)
        except Refusal as refusal:
            return self.send(refusal.status, refusal.headers, json.dumps({"error": refusal.message}).encode())
        if answer is not None:
            self.send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def route(self, path: str):
        for methods, pattern, name in ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, path)):
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value}
                if self.command != "GET" and name in ("create", "preupload", "batch", "commit"):
                    self.check_token()
                if "repo" in parts:
                    parts = self.located(**parts)
                return getattr(self, name)(**parts)
        self.hub.missed.append(f"{self.command} {unquote(path)}")
        raise Refusal(404, "", "No such address")

    def check_token(self):
        if not self.headers["Authorization"]:
            raise Refusal(401, "", "Invalid username or password.")

    def located(self, repo: str, kind: str = "model", revision: str = "main", **parts: str) -> dict:
        """The repository and the commit that an address means."""
        repository = self.hub.repositories.get((kind.rstrip("s/"), repo))
        if repository is None:
            raise Refusal(404 if self.headers["Authorization"] else 401, "RepoNotFound", "Repository not found")
        return {"repository": repository, "commit": repository.find(revision), "revision": revision, **parts}

    def send(self, status: int, headers: dict, body: bytes, length: int | None = None):
        """An answer; where the body is shorter than ``length`` promises, the connection ends with it."""
        length = len(body) if length is None else length
        self.send_response(status)
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.close_connection = self.close_connection or len(body) < length

    def resolve(self, repository: Repository, commit: str, path: str, **_):
        if repository.gated:
            raise Refusal(403, "GatedRepo", f"Access to {repository.id} is restricted.")
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist", commit)
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": blob.size}
        start, stop = self.range(blob.size)
        if start > 0 and start >= stop:
            return self.send(416, {"Content-Range": f"bytes */{blob.size}"}, b"")
        if self.headers["Range"]:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        body = b"" if self.command == "HEAD" else self.hub.body(path, blob, start, stop)
        self.send(206 if self.headers["Range"] else 200, headers, body, stop - start)

    def range(self, size: int) -> tuple[int, int]:
        """The bytes asked for: ``a-b``, ``a-`` or ``-n``, or all of them."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or "bytes=0-")
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def info(self, repository: Repository, commit: str, **_) -> dict:
        return repository.info(commit)

    def tree(self, repository: Repository, commit: str, path: str = "", **_) -> list[dict]:
        return repository.tree(
            commit, path, *(self.query.get(n, [""])[0].lower() == "true" for n in ("recursive", "expand"))
        )

    def paths_info(self, repository: Repository, commit: str, **_) -> list[dict]:
        form = parse_qs(self.data.decode())
        expand = form.get("expand", [""])[0].lower() == "true"
        return [entry for path in form.get("paths", []) if (entry := repository.entry(commit, path, expand))]

    def validate_yaml(self) -> dict:
        """Of a card's header; the clients ask before they upload one."""
        return {"errors": [], "warnings": []}

    def whoami(self) -> dict:
        self.check_token()
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "name": "tester", "fullname": "Tester", "orgs": [], "auth": access}

    def create(self):
        wanted = json.loads(self.data)
        kind = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        known = (kind, repo_id) in self.hub.repositories
        if not known:
            self.hub.add(repo_id, {}, kind)
        self.send(409 if known else 200, {"Content-Type": "application/json"}, json.dumps({"url": url}).encode())

    def preupload(self, repository: Repository, commit: str, **_) -> dict:
        files = repository.commits[commit]
        answers = []
        for file in json.loads(self.data)["files"]:
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            known = {"oid": files[file["path"]].oid} if file["path"] in files else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answers, "commitOid": commit}

    def batch(self) -> dict:
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(self.data)["objects"]]
        for wanted in objects:
            if not (self.hub.blobs / wanted["oid"]).is_file():
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/uploads/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def upload(self, sha256: str):
        if hashlib.sha256(self.data).hexdigest() != sha256:
            raise Refusal(400, "", "The bytes do not have this SHA-256")
        self.hub.store(self.data, large=True)
        self.send(200, {}, b"")

    def commit(self, repository: Repository, commit: str, revision: str) -> dict:
        files = dict(repository.commits[commit])
        for line in self.data.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), large=False)
            elif key == "lfsFile":
                stored = self.hub.blobs / value["oid"]
                if not stored.is_file():
                    raise Refusal(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(stored, stored.stat().st_size, large=True)
            elif key in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                files = {path: b for path, b in files.items() if path != gone and not path.startswith(f"{gone}/")}
        made = repository.commit(files, revision)
        prefix = "datasets/" if repository.kind == "dataset" else ""
        return {
            "success": True,
            "commitOid": made,
            "commitUrl": f"{self.hub.url}/{prefix}{repository.id}/commit/{made}",
        }


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
