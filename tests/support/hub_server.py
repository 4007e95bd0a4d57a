"""A Hub on this machine, for the real huggingface_hub client.

`python tests/support/hub_server.py --root DIR` prints two ports.

It speaks the wire contract: repositories, commits, revisions, tags, pull requests, large files by sha256. Large files
are sent and fetched at a second origin (another port), which wants no token; every request is noted in DIR/log.jsonl
with the port and the authorization that came with it. Accounts are in DIR/accounts.json: {token: {name, orgs, write}}.

DIR/faults.json is a list of planted faults, looked at on every request; the first that fits is used:
{"method": "GET", "path": regex, "skip": 0, "times": 1, and one of
 "status": 500 (with "code", "message", "headers"), "cut": bytes sent before the connection ends, "cut_after": true
 (the request is carried out, then the connection ends without an answer), "flip": true (one byte), "short": true,
 "replace": [[old, new], ...] in the answer,
 "sleep": seconds, "restart": seconds (the server goes away without an answer, and refuses connections so long),
 "commit": {name: text} (somebody else commits these to main before the request is carried out)}.

DIR/options.json: {"preupload_oid": false, "blobs": false, "refs": false} makes a poorer Hub, and
{"other": true} one that makes every other choice that the contract leaves: small files by a relative redirect, weak
ETags, large files on another host, hashes of a commit in pages of the tree only, no error codes, 201 for uploads.
Others: "ids": 64 or "words" (see the store), "short_ids": 40 (digits of an id everywhere but in a description),
"visibility": false (all are public), "says_private": false, "parents": false (parentCommit is not heeded), "commits":
false (no history), "pulls": "none" (501) or "main" (pull requests become commits), "lists": "sizes" or "names" (all
that lists of files have), "serves": "first commit" (its files, whatever is asked for), "staged": [names] (listed, not
served), "storage": "dead" (large files are on a port where nobody listens).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_rules import card_data, card_faults
from hub_store import Refused, Store

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", "verify"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"/api/models/{REPO}/tag/(?P<rev>[^/]+)", "tag"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<rev>[^/]+)", "tree"),
    ("GET", rf"/api/models/{REPO}/refs", "refs"),
    ("GET", rf"/api/models/{REPO}/commits/(?P<rev>[^/]+)", "commits"),
    ("GET", rf"/api/models/{REPO}/discussions", "discussions"),
    ("GET", rf"/api/models/{REPO}(?:/revision/(?P<rev>[^/]+))?", "info"),
    ("GET", rf"/api/resolve-cache/models/{REPO}/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
]


class Hub:
    """The store, the planted faults and the log: what all connections share."""

    def __init__(self, root: Path) -> None:
        self.root, self.store, self.lock = root, Store(root), threading.RLock()
        self.main_port = self.storage_port = 0
        self.restart: Callable[[float], None] = lambda seconds: None
        self.other_host = "127.0.0.1"

    def read(self, name: str, otherwise: Any) -> Any:
        path = self.root / name
        return json.loads(path.read_text()) if path.exists() else otherwise

    def note(self, **row: Any) -> None:
        with self.lock, (self.root / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def fault(self, method: str, path: str) -> dict[str, Any]:
        """The planted fault for this request, which is used up by it; empty when there is none."""
        with self.lock:
            faults = self.read("faults.json", [])
            for fault in faults:
                if fault.get("method", method) != method or not re.search(fault["path"], path):
                    continue
                due = "skip" if fault.get("skip", 0) > 0 else "times"
                if fault.setdefault(due, 1) > 0:
                    fault[due] -= 1
                    (self.root / "faults.json").write_text(json.dumps(faults))
                    return dict(fault) if due == "times" else {}
        return {}


class Connection(BaseHTTPRequestHandler):
    """One connection to either origin."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client to say that it got the headers
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def option(self, name: str, otherwise: Any = None) -> Any:
        return self.hub.read("options.json", {}).get(name, otherwise)

    @property
    def other(self) -> bool:
        return bool(self.option("other"))

    def shown(self, oid: str) -> str:
        """The id of a commit as most answers have it."""
        digits: int | None = self.option("short_ids")
        return oid[:digits]

    @property
    def storage_port(self) -> int:
        return 9 if self.option("storage") == "dead" else self.hub.storage_port

    # the frame of every answer

    def answer(self, method: str) -> None:
        self.fault = self.hub.fault(method, self.path)
        # A fault before the answer comes before the body is read to its end, like a proxy's.
        self.body = self._read_body()
        port = self.server.server_address[1]
        said = {key: self.headers.get(key) for key in ("Authorization", "User-Agent")}
        self.hub.note(
            method=method, path=self.path, port=port, authorization=said["Authorization"], agent=said["User-Agent"]
        )
        time.sleep(self.fault.get("sleep", 0))
        if "restart" in self.fault:
            self.close_connection = True
            self.hub.restart(self.fault["restart"])
            return
        try:
            if "status" in self.fault:
                raise Refused(
                    self.fault["status"],
                    self.fault.get("message", "a planted fault"),
                    self.fault.get("code"),
                    self.fault.get("headers"),
                )
            with self.hub.lock:
                if port == self.hub.storage_port:
                    self.storage(method)
                else:
                    if "commit" in self.fault:
                        self.commit_meanwhile(self.fault["commit"])
                    self.route(method)
        except Refused as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if self.other:
                headers = {}
            elif error.code:
                headers["X-Error-Code"] = error.code
            self.send(error.status, json.dumps({"error": error.message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def commit_meanwhile(self, texts: dict[str, str]) -> None:
        repo = re.sub(r"^/api/models/([^/]+/[^/?]+).*", r"\1", self.path)
        files = {name: self.hub.store.put_blob(text.encode()) for name, text in texts.items()}
        self.hub.store.commit(repo, "main", "by hand", "", files=files)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.fault.get("cut_after"):
            self.close_connection = True
            return
        sent = content
        for old, new in self.fault.get("replace", []):
            sent = content = sent.replace(old.encode(), new.encode())
        if self.fault.get("flip"):
            middle = len(sent) // 2
            sent = sent[:middle] + bytes([sent[middle] ^ 1]) + sent[middle + 1 :]
        if self.fault.get("short"):
            sent = sent[:-7]
            content = sent
        if "cut" in self.fault:
            sent = sent[: self.fault["cut"]]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if "cut" in self.fault:
            self.wfile.flush()
            self.close_connection = True

    def send_json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def route(self, method: str) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        # A data set's addresses are a model's with another word; the store knows it as datasets/OWNER/NAME.
        path = re.sub(r"^(/api|/api/resolve-cache)/datasets/", r"\1/models/", split.path).removeprefix("/datasets")
        is_data = path != split.path
        for wanted, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and wanted == {"HEAD": "GET"}.get(method, method):
                parts = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                if is_data:
                    parts["repo"] = f"datasets/{parts['repo']}"
                getattr(self, f"on_{name}")(**parts)
                return
        raise Refused(404, f"Sorry, we can't find the page you are looking for: {split.path}")

    @property
    def account(self) -> dict[str, Any] | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        found = self.hub.store.accounts().get(given.removeprefix("Bearer "))
        if found is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return found

    def opened(self, repo: str, *, write: bool = False, known: bool = False, content: bool = False) -> dict[str, Any]:
        """The state of a repository, if whoever asks may have it."""
        account = self.account
        if (write or known) and account is None:
            raise Refused(401, "Invalid username or password.")
        mine = account is not None and repo.split("/")[-2] in (account["name"], *account.get("orgs", []))
        if not self.hub.store.exists(repo) or (self.hub.store.load(repo)["private"] and not mine):
            raise Refused(404 if account else 401, "Repository not found", "RepoNotFound")
        state = self.hub.store.load(repo)
        if state["disabled"]:
            raise Refused(403, "Access to this resource is disabled.")
        if content and state["gated"] and not mine:
            raise Refused(403 if account else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        if write:
            self.may_write(repo.split("/")[0])
        return state

    def may_write(self, owner: str) -> None:
        account = self.account
        if account is None:
            raise Refused(401, "Invalid username or password.")
        if not account.get("write", True) or owner not in (account["name"], *account.get("orgs", [])):
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    # who, and whether a card holds

    def on_whoami(self) -> None:
        account = self.account
        if account is None:
            raise Refused(401, "Invalid username or password.")
        name, orgs = account["name"], [{"name": org} for org in account.get("orgs", [])]
        role = "write" if account.get("write", True) else "read"
        if self.other:
            self.send_json({"type": "user", "name": name})
            return
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.send_json({"type": "user", "name": name, "fullname": name, "orgs": orgs, "auth": auth})

    def on_validate(self) -> None:
        errors, warnings = card_faults(json.loads(self.body)["content"])
        answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        self.send(400 if errors else 200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def on_create(self) -> None:
        asked = json.loads(self.body)
        if self.account is None:
            raise Refused(401, "Invalid username or password.")
        owner = asked.get("organization") or self.account["name"]
        self.may_write(owner)
        repo = f"{owner}/{asked['name']}"
        answer = {"url": f"http://127.0.0.1:{self.hub.main_port}/{repo}", "name": repo, "id": repo}
        if self.hub.store.exists(repo):
            message = {"error": "You already created this model repo"}
            self.send(409, json.dumps(answer | message).encode(), {"Content-Type": "application/json"})
            return
        self.hub.store.create(repo, asked.get("visibility") == "private" and self.option("visibility", True))
        self.send_json(answer)

    # pushing

    def on_preupload(self, repo: str, rev: str) -> None:
        state = self.opened(repo, write="create_pr" not in self.query, known=True)
        tree = state["commits"][self.hub.store.resolve(state, rev)]["files"]
        answers = []
        for file in json.loads(self.body)["files"]:
            sample = base64.b64decode(file["sample"])
            answer = {"path": file["path"], "shouldIgnore": False}
            answer["uploadMode"] = self.hub.store.mode(file["path"], sample, file["size"])
            if self.other and file["path"].endswith(".json"):
                answer["uploadMode"] = "lfs"
            there = tree.get(file["path"])
            if there and self.option("preupload_oid", True):
                answer["oid"] = there["lfs"]["sha256"] if "lfs" in there else there["oid"]
            answers.append(answer)
        self.send_json({"files": answers})

    def on_batch(self, repo: str) -> None:
        self.opened(repo, known=True)
        asked, objects = json.loads(self.body), []
        for item in asked["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if not (self.hub.root / "objects" / item["oid"]).exists():
                storage = f"http://127.0.0.1:{self.storage_port}/put/{item['oid']}?signature=yes"
                verify = f"http://127.0.0.1:{self.hub.main_port}/{repo}.git/info/lfs/objects/verify"
                answer["actions"] = {"upload": {"href": storage, "header": {}}, "verify": {"href": verify}}
                if self.other:
                    storage = storage.replace("127.0.0.1", self.hub.other_host)
                    answer["actions"] = {"upload": {"href": storage, "header": {"x-kind": "block"}, "expires_in": 60}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def on_verify(self, repo: str) -> None:
        self.opened(repo, known=True)
        asked = json.loads(self.body)
        self.hub.store.object_file(asked["oid"], asked["size"])
        self.send_json({})

    def on_commit(self, repo: str, rev: str) -> None:
        pull_request = "create_pr" in self.query
        if pull_request and self.option("pulls") == "none":
            raise Refused(501, "Pull requests are not implemented")
        pull_request = pull_request and self.option("pulls") != "main"
        self.opened(repo, write=not pull_request, known=True)
        header: dict[str, Any] = {}
        files, deleted = {}, []
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = self.hub.store.put_blob(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.store.object_file(value["oid"], value["size"])
            elif item["key"] == "deletedFile":
                deleted.append(value["path"])
        oid, number = self.hub.store.commit(
            repo,
            rev,
            header["summary"],
            header.get("description", ""),
            files=files,
            deleted=tuple(deleted),
            parent=header.get("parentCommit"),
            pull_request=pull_request,
            check_parent=self.option("parents", True),
        )
        oid = self.shown(oid)
        base = f"http://127.0.0.1:{self.hub.main_port}/{repo}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{base}/commit/{oid}", "hookOutput": ""}
        if self.other:
            answer |= {"commitMessage": "x", "warnings": [], "lfs": {"n": 1}}
        if number is not None:
            answer["pullRequestUrl"] = f"{base}/discussions/{number}"
        self.send_json(answer)

    def on_tag(self, repo: str, rev: str) -> None:
        state = self.opened(repo, write=True)
        tag = json.loads(self.body)["tag"]
        if tag in state["tags"]:
            raise Refused(409, f"Tag {tag} already exists")
        state["tags"][tag] = self.hub.store.resolve(state, rev)
        self.hub.store.save(repo, state)
        self.send_json({})

    # looking and fetching

    def on_info(self, repo: str, rev: str = "main") -> None:
        state = self.opened(repo)
        oid = self.hub.store.resolve(state, rev)
        files = state["commits"][oid]["files"]
        blobs = "blobs" in self.query and self.option("lists") is None and self.option("blobs", not self.other)
        siblings = []
        for path, entry in files.items():
            row: dict[str, Any] = {"rfilename": path}
            if blobs:
                row |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    row["lfs"] = entry["lfs"]
            elif self.option("lists") == "sizes":
                row["size"] = entry["size"]
            siblings.append(row)
        siblings += [{"rfilename": path} for path in self.option("staged", []) if path not in files]
        card = card_data(self.hub.store.content(files["README.md"]).decode()) if "README.md" in files else {}
        name = repo.removeprefix("datasets/")
        answer: dict[str, Any] = {"_id": "0", "id": name, "modelId": name, "sha": oid, "siblings": siblings}
        if self.option("says_private", True):
            answer["private"] = state["private"]
        answer |= {"gated": state["gated"], "disabled": state["disabled"]}
        answer |= {"tags": card.get("tags", []), "downloads": 0, "likes": 0}
        answer["lastModified"] = answer["createdAt"] = "2026-01-01T00:00:00.000Z"
        if card:
            answer["cardData"] = card
            answer |= {k: card[k] for k in ("library_name", "pipeline_tag", "model-index") if k in card}
        self.send_json(answer)

    def on_tree(self, repo: str, rev: str) -> None:
        state = self.opened(repo)
        if self.option("lists") is not None:
            raise Refused(404, "no such page")
        files = state["commits"][self.hub.store.resolve(state, rev)]["files"]
        rows = []
        for path, entry in files.items():
            row = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
            if "lfs" in entry:
                row["lfs"] = {**entry["lfs"], "oid": entry["lfs"]["sha256"]}
            rows.append(row)
        if not self.other:
            self.send_json(rows)
            return
        at = int(self.query.get("cursor", ["0"])[0])
        kind = "" if repo.startswith("datasets/") else "models/"
        where = f"http://127.0.0.1:{self.hub.main_port}/api/{kind}{repo}/tree/{rev}"
        link = {"Link": f'<{where}?recursive=true&cursor={at + 2}>; rel="next"'} if at + 2 < len(rows) else {}
        self.send_json(rows[at : at + 2], link)

    def on_refs(self, repo: str) -> None:
        state = self.opened(repo)
        if not self.option("refs", True):
            raise Refused(404, "no such page")

        def listed(refs: str, prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": prefix + n, "targetCommit": self.shown(oid)} for n, oid in state[refs].items()]

        answer = {"branches": listed("branches", "refs/heads/"), "tags": listed("tags", "refs/tags/"), "converts": []}
        if "include_prs" in self.query:
            answer["pullRequests"] = listed("pulls", "refs/pr/")
        self.send_json(answer)

    def on_commits(self, repo: str, rev: str) -> None:
        state = self.opened(repo)
        if not self.option("commits", True):
            raise Refused(404, "no such page")
        rows = self.hub.store.history(state, self.hub.store.resolve(state, rev))
        date = "2026-01-01T00:00:00.000Z"
        names = {"date": date, "authors": []}
        self.send_json([{k: r[k] for k in ("title", "message")} | {"id": self.shown(r["id"])} | names for r in rows])

    def on_discussions(self, repo: str) -> None:
        state = self.opened(repo)
        rows = [
            {
                "title": state["commits"][oid]["title"],
                "num": int(number),
                "author": {"name": "someone"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": repo, "type": "model"},
                "isPullRequest": True,
            }
            for number, oid in state["pulls"].items()
        ]
        self.send_json({"discussions": rows, "count": len(rows), "start": 0})

    def on_resolve(self, repo: str, rev: str, path: str) -> None:
        state = self.opened(repo, content=True)
        oid = self.hub.store.resolve(state, rev)
        tree = state["commits"][oid]["files"]
        if self.option("serves") == "first commit":  # the one after the Hub's own
            tree = self.hub.store.history(state, oid)[-2]["files"]
        entry = tree.get(path)
        if entry is None:
            raise Refused(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": self.shown(oid), "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            sha256 = entry["lfs"]["sha256"]
            headers["Location"] = f"http://127.0.0.1:{self.storage_port}/get/{sha256}?signature=yes"
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(entry["size"])}
            if self.other:
                headers["Location"] = headers["Location"].replace("127.0.0.1", self.hub.other_host)
                headers["ETag"] = f"W/{headers.pop('X-Linked-Etag')}"
            self.send(302, b"Found. Redirecting", headers)
            return
        content = self.hub.store.content(entry)
        if self.other and "/api/resolve-cache/" not in self.path:
            kind = "datasets" if repo.startswith("datasets/") else "models"
            place = f"/api/resolve-cache/{kind}/{repo.removeprefix('datasets/')}/{oid}/{path}"
            self.send(307, b"", {"Location": place, "X-Repo-Commit": oid, "ETag": f'W/"{entry["oid"]}"'})
            return
        weak = "W/" if self.other else ""
        self.send(200, content, {**headers, "ETag": f'{weak}"{entry["oid"]}"'})

    # the second origin

    def storage(self, method: str) -> None:
        match = re.fullmatch(r"/(put|get)/([0-9a-f]{64})", urlsplit(self.path).path)
        if match is None:
            raise Refused(404, "no such object")
        kind, sha256 = match.groups()
        if kind == "put" and method == "PUT":
            self.hub.store.put_object(sha256, self.body)
            status = 201 if self.other else 200
            self.send(status, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
            return
        content = (self.hub.root / "objects" / sha256).read_bytes()
        headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
        given = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if given and int(given[1]) < len(content) and not self.other:
            start = int(given[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], headers)
        else:
            self.send(200, content, headers)


def serve(root: Path, port: int) -> None:
    """Serves both origins until standard input ends, so that no server outlives who started it."""
    hub = Hub(root)
    handler = type("BoundConnection", (Connection,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", number), handler) for number in (port, 0)]
    hub.main_port, hub.storage_port = (server.server_address[1] for server in servers)

    def restart(seconds: float) -> None:
        servers[0].shutdown()
        servers[0].server_close()
        threading.Timer(seconds, come_back).start()

    def come_back() -> None:
        servers[0] = ThreadingHTTPServer(("127.0.0.1", hub.main_port), handler)
        servers[0].daemon_threads = True
        threading.Thread(target=servers[0].serve_forever, args=(0.05,), daemon=True).start()

    hub.restart = restart
    with contextlib.suppress(OSError):  # not every system has more than one loopback address
        servers.append(ThreadingHTTPServer(("127.0.0.2", hub.storage_port), handler))
        hub.other_host = "127.0.0.2"
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    print(hub.main_port, hub.storage_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    serve(given.root, given.port)
