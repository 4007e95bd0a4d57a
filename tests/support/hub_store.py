"""What the loopback Hub keeps, on disk: accounts, repositories, commits, refs, blobs and large objects.

A commit lists every file of its tree with the git sha1 of its content (of the pointer, for a large file), its size, and
the sha256 of a large one. Everything is written at once under a lock, so a server can be stopped and started again.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
LARGE_ENDINGS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx", ".h5", ".msgpack", ".npz"),
    *(".parquet", ".tar"),
)


class Refused(Exception):
    """An answer with an error status, and the Hub's own code for it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


def git_id(content: bytes, digits: int = 40) -> str:
    """Git's id of a blob, in a repository of either kind."""
    kind = hashlib.sha1 if digits == 40 else hashlib.sha256
    return kind(b"blob %d\0" % len(content) + content).hexdigest()


def pointer_of(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Store:
    """All repositories below one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.RLock()
        for name in ("repos", "blobs", "objects"):
            (root / name).mkdir(parents=True, exist_ok=True)

    @property
    def ids(self) -> int | str:
        """How commits are called: by 40 or 64 hex digits, or "words"."""
        path = self.root / "options.json"
        found: int | str = json.loads(path.read_text()).get("ids", 40) if path.exists() else 40
        return found

    def accounts(self) -> dict[str, dict[str, Any]]:
        path = self.root / "accounts.json"
        found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        return found

    # repositories

    def _file(self, repo: str) -> Path:
        return self.root / "repos" / (repo.replace("/", "--") + ".json")

    def exists(self, repo: str) -> bool:
        return self._file(repo).exists()

    def load(self, repo: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file(repo).read_text())
        return found

    def save(self, repo: str, state: dict[str, Any]) -> None:
        temporary = self._file(repo).with_suffix(".part")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(self._file(repo))

    def create(self, repo: str, private: bool) -> None:
        blank: dict[str, Any] = {"private": private, "gated": False, "disabled": False, "commits": {}}
        self.save(repo, blank | {"branches": {}, "tags": {}, "pulls": {}})
        files = {".gitattributes": self.put_blob(ATTRIBUTES)}
        self.commit(repo, "main", "initial commit", "", files=files)

    # contents

    def put_blob(self, content: bytes) -> dict[str, Any]:
        oid = git_id(content, 64 if self.ids == 64 else 40)
        (self.root / "blobs" / oid).write_bytes(content)
        return {"oid": oid, "size": len(content)}

    def put_object(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refused(400, "the content does not have the sha256 of its name")
        path = self.root / "objects" / sha256
        temporary = path.with_suffix(f".{threading.get_ident()}")
        temporary.write_bytes(content)
        temporary.replace(path)

    def object_file(self, sha256: str, size: int) -> dict[str, Any]:
        path = self.root / "objects" / sha256
        if not path.exists() or path.stat().st_size != size:
            raise Refused(400, f"no large object {sha256} of {size} bytes was uploaded")
        pointer = pointer_of(sha256, size)
        return self.put_blob(pointer) | {
            "size": size,
            "lfs": {"sha256": sha256, "size": size, "pointerSize": len(pointer)},
        }

    def content(self, entry: dict[str, Any]) -> bytes:
        if "lfs" in entry:
            return (self.root / "objects" / entry["lfs"]["sha256"]).read_bytes()
        return (self.root / "blobs" / entry["oid"]).read_bytes()

    # history

    def resolve(self, state: dict[str, Any], revision: str) -> str:
        for refs, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/"), ("pulls", "refs/pr/")):
            short = revision.removeprefix(prefix)
            if short in state[refs] and (refs != "pulls" or revision.startswith(prefix)):
                oid: str = state[refs][short]
                return oid
        found = [oid for oid in state["commits"] if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return str(found[0])

    def commit(
        self,
        repo: str,
        branch: str,
        summary: str,
        description: str,
        *,
        files: dict[str, dict[str, Any]],
        deleted: tuple[str, ...] = (),
        parent: str | None = None,
        pull_request: bool = False,
        check_parent: bool = True,
    ) -> tuple[str, int | None]:
        """Adds a commit to a branch, or as a new pull request; returns its oid and the request's number."""
        state = self.load(repo)
        head = state["branches"].get(branch)
        if head is None and state["commits"]:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        is_stale = str(head) != parent if self.ids == 64 else not str(head).startswith(str(parent))
        if check_parent and parent is not None and not pull_request and is_stale:
            raise Refused(412, f"A commit has happened since. Please refresh and try again (head is {head}).")
        base = parent if pull_request and parent else head
        tree = dict(state["commits"][base]["files"]) if base else {}
        for path in deleted:
            if path not in tree:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            del tree[path]
        tree.update(files)
        body = {"parent": base, "title": summary, "message": description, "date": time.time(), "files": tree}
        kind = hashlib.sha256 if self.ids == 64 else hashlib.sha1
        oid = kind(json.dumps(body, sort_keys=True).encode()).hexdigest()
        oid = f"Change_{len(state['commits'])}.{oid[:6]}" if self.ids == "words" else oid
        state["commits"][oid] = body
        number = None
        if pull_request:
            number = len(state["pulls"]) + 1
            state["pulls"][str(number)] = oid
        else:
            state["branches"][branch] = oid
        self.save(repo, state)
        return oid, number

    def history(self, state: dict[str, Any], oid: str | None) -> list[dict[str, Any]]:
        found = []
        while oid is not None:
            found.append({"id": oid, **state["commits"][oid]})
            oid = state["commits"][oid]["parent"]
        return found

    def mode(self, path: str, sample: bytes, size: int) -> str:
        return "lfs" if path.endswith(LARGE_ENDINGS) or b"\0" in sample or size > 10_000_000 else "regular"
