"""What a hub answers: its addresses, and what each of them does."""

import base64
import hashlib
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_files import Blob, Refusal, Repository, is_large


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
