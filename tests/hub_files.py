"""What a hub keeps: files under their hashes, repositories of commits, and the errors that it answers with."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

LARGE_ENDINGS = (".safetensors", ".bin", ".parquet", ".gz", ".zst")
LARGE_BYTES = 16 * 1024
DATE = "2024-01-01T00:00:00.000Z"


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
