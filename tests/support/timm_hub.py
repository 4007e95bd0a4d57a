"""A loopback Hub for timm's weights: one file, whatever is asked for, as the Hub answers for a large one."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(BaseHTTPRequestHandler):
    """HEAD and GET of /{id}/resolve/{revision}/{file}; `asked` of the server has (method, path) of each request."""

    def do_HEAD(self):
        self.server.asked.append(("HEAD", self.path))
        if self.server.fault:
            status, code = self.server.fault
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        sha = hashlib.sha256(self.server.content).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"{self.server.other}/blob")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("X-Linked-Etag", f'"{sha}"')
        self.send_header("X-Linked-Size", str(len(self.server.content)))
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def do_GET(self):
        self.server.asked.append(("GET", self.path))
        if self.path != "/blob":
            self.send_response(302)
            self.send_header("Location", f"{self.server.other}/blob")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = self.server.content[:-1] + b"?" if self.server.spoil else self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(content):
    """A loopback Hub whose files are all `content`, and a second port where its large files lie."""
    pair = [ThreadingHTTPServer(("127.0.0.1", 0), Hub) for _ in range(2)]
    asked = []
    for server in pair:
        server.content, server.asked, server.fault, server.spoil = content, asked, None, False
        server.other = f"http://127.0.0.1:{pair[1].server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield pair
    for server in pair:
        server.shutdown()
        server.server_close()


def settings(servers, home):
    """The environment of a process that is to ask this Hub, with its cache under `home`."""
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{servers[0].server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
