"""Downloads from a real server on this machine that fails in all the ways servers do."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from idx_files import make_files

from finetune.data import download
from finetune.data.download import fetch
from finetune.data.idx import read_splits
from finetune.data.registry import DATASETS, DatasetSpec
from finetune.data.spec import Archive
from finetune.errors import DownloadError, OutputError

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def good(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def no_length(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(body)


def broken(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_error(500)


def garbage(request: BaseHTTPRequestHandler, body: bytes) -> None:
    good(request, b"<html>Please log in to this network</html>")


def altered(request: BaseHTTPRequestHandler, body: bytes) -> None:
    good(request, body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])


def cut(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: len(body) // 2])


def cut_without_length(request: BaseHTTPRequestHandler, body: bytes) -> None:
    no_length(request, body[: len(body) // 2])


def silent(request: BaseHTTPRequestHandler, body: bytes) -> None:
    """Sends nothing; the connection stays open until the client gives up."""
    request.connection.settimeout(5)
    request.rfile.read(1)


def nonsense(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH_9.6 \x1b[2J\r\n")


FAULTS = {
    broken: "HTTP 500",
    garbage: r"expected MD5 \w+, found \w+ \(42 bytes\)",
    altered: "expected MD5",
    cut: r"cut off after [\d,]+ of [\d,]+ bytes",
    cut_without_length: "expected MD5",
    silent: "no answer within 0.3 s",
    nonsense: "SSH-2.0-OpenSSH",
}


class Mirrors:
    """One server; each folder on it is a mirror with its own way to answer, and `asked` lists the paths asked for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        mirrors = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirrors.asked.append(self.path)
                _, folder, name = self.path.split("/")
                mirrors.answers[folder](self, mirrors.bodies[name])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def row(self, name: str, *answers: Answer, bodies: dict[str, bytes] | None = None) -> DatasetSpec:
        """The row of a data set, with these bytes to download and one mirror for each way to answer."""
        row = DATASETS[name]
        self.bodies = bodies or {f"{file}.gz": gzip.compress(data) for file, data in make_files(name).items()}
        self.answers = {f"m{i}": answer for i, answer in enumerate(answers)}
        return replace(
            row,
            archives=tuple(Archive(file, hashlib.md5(data).hexdigest()) for file, data in self.bodies.items()),
            mirrors=tuple(f"http://127.0.0.1:{self.server.server_port}/{folder}/" for folder in self.answers),
        )


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirrors]:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    mirrors = Mirrors()
    yield mirrors
    mirrors.server.shutdown()
    mirrors.server.server_close()


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_first_good_mirror_gives_all(mirrors: Mirrors, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, expected = mirrors.row("mnist", good, broken), make_files("mnist")
    fetch(row, tmp_path / "new" / "root")
    raw = row.raw_folder(tmp_path / "new" / "root")
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == expected
    assert mirrors.asked == [f"/m0/{file}.gz" for file in expected]
    assert len(read_splits(row, tmp_path / "new" / "root").train) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.count("downloading http://127.0.0.1") == 4 and "\x1b" not in err and "\r" not in err
    mirrors.asked.clear()
    fetch(row, tmp_path / "new" / "root")
    assert mirrors.asked == [], "what is there is not asked for again"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_bad_mirror_is_passed_over(fault: Answer, mirrors: Mirrors, tmp_path: Path) -> None:
    row = mirrors.row("kmnist", fault, good)
    row = replace(row, train_files=(), archives=row.archives[2:])
    fetch(row, tmp_path)
    raw = row.raw_folder(tmp_path)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == {
        name: data for name, data in make_files("kmnist").items() if name in row.test_files
    }
    assert [path.split("/")[1] for path in mirrors.asked] == ["m0", "m1"] * 2


def test_a_body_of_unknown_length_is_taken(mirrors: Mirrors, tmp_path: Path) -> None:
    row = mirrors.row("mnist", no_length)
    fetch(row, tmp_path)
    assert not row.missing(tmp_path)


def test_when_all_fail_one_message_tells_everything(mirrors: Mirrors, tmp_path: Path) -> None:
    row = mirrors.row("mnist", *FAULTS)
    row = replace(row, mirrors=(*row.mirrors, "http://127.0.0.1:9/closed/"))
    with pytest.raises(DownloadError) as caught:
        fetch(row, tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert first == "mnist: no mirror gave train-images-idx3-ubyte.gz"
    reasons, advice = rest[: len(row.mirrors)], "\n".join(rest[len(row.mirrors) :])
    for line, mirror in zip(reasons, row.mirrors, strict=True):
        assert line.startswith(f"  {mirror}train-images-idx3-ubyte.gz: ") and line.isprintable()
    assert "Connection refused" in reasons[-1]
    for line, reason in zip(reasons, FAULTS.values(), strict=False):
        assert re.search(reason, line), (reason, line)
    assert str(row.raw_folder(tmp_path)) in advice and "recipes/digits.yaml" in advice
    assert all(name in advice for name in row.files)
    assert files_in(row.raw_folder(tmp_path)) == set(), "nothing half-done is left"


def test_what_was_complete_is_kept_and_the_rest_comes_later(mirrors: Mirrors, tmp_path: Path) -> None:
    row = mirrors.row("mnist", good)

    def only_images(request: BaseHTTPRequestHandler, body: bytes) -> None:
        (good if "images" in request.path else cut)(request, body)

    mirrors.answers["m0"] = only_images
    with pytest.raises(DownloadError, match="train-labels"):
        fetch(row, tmp_path)
    assert files_in(row.raw_folder(tmp_path)) == {"train-images-idx3-ubyte"}
    mirrors.answers["m0"] = good
    mirrors.asked.clear()
    fetch(row, tmp_path)
    assert mirrors.asked == [
        "/m0/train-labels-idx1-ubyte.gz",
        "/m0/t10k-images-idx3-ubyte.gz",
        "/m0/t10k-labels-idx1-ubyte.gz",
    ]
    assert len(read_splits(row, tmp_path).test) == 70


def test_ctrl_c_leaves_nothing_behind(mirrors: Mirrors, tmp_path: Path) -> None:
    def pressed_halfway(request: BaseHTTPRequestHandler, body: bytes) -> None:
        cut(request, body)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        silent(request, body)

    row = mirrors.row("mnist", pressed_halfway, good)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch(row, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert files_in(row.raw_folder(tmp_path)) == set()


def emnist_zip(*splits: str, extra: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for split in splits:
            for file, data in make_files(f"emnist-{split}", (4, 3)).items():
                bundle.writestr(f"gzip/{file}.gz", gzip.compress(data))
        for name, data in (extra or {}).items():
            bundle.writestr(name, data)
    return buffer.getvalue()


def test_emnist_gives_only_the_split_asked_for(mirrors: Mirrors, tmp_path: Path) -> None:
    climbing = {"../../escaped": b"x", "/etc/escaped": b"x", "gzip/../../escaped.gz": b"x"}
    row = mirrors.row("emnist-letters", good, bodies={"gzip.zip": emnist_zip("letters", "digits", extra=climbing)})
    fetch(row, tmp_path)
    raw = row.raw_folder(tmp_path)
    assert files_in(raw) == {*row.files, "gzip.zip"}
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == files_in(raw), "nothing escapes"
    assert len(read_splits(row, tmp_path).train) == 4
    mirrors.asked.clear()
    digits = replace(DATASETS["emnist-digits"], archives=row.archives, mirrors=row.mirrors)
    fetch(digits, tmp_path)
    assert mirrors.asked == [], "the archive kept serves the next split"
    assert files_in(raw) == {*row.files, *digits.files, "gzip.zip"}


def test_a_member_under_a_climbing_path_still_lands_in_its_place(mirrors: Mirrors, tmp_path: Path) -> None:
    files = {f"../../{f}.gz": gzip.compress(data) for f, data in make_files("emnist-letters", (4, 3)).items()}
    row = mirrors.row("emnist-letters", good, bodies={"gzip.zip": emnist_zip(extra=files)})
    fetch(row, tmp_path / "root")
    assert files_in(tmp_path) == {"root"}
    assert len(read_splits(row, tmp_path / "root").test) == 3


@pytest.mark.parametrize("spoilt", [emnist_zip("letters")[:100], emnist_zip("letters", "digits")], ids=["cut", "other"])
def test_an_archive_on_disk_that_is_not_the_right_one_is_replaced(
    spoilt: bytes, mirrors: Mirrors, tmp_path: Path
) -> None:
    row = mirrors.row("emnist-letters", good, bodies={"gzip.zip": emnist_zip("letters")})
    raw = row.raw_folder(tmp_path)
    raw.mkdir(parents=True)
    (raw / "gzip.zip").write_bytes(spoilt)
    fetch(row, tmp_path)
    assert (raw / "gzip.zip").read_bytes() == mirrors.bodies["gzip.zip"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [(emnist_zip("digits"), "holds no emnist-letters-train-images"), (b"not a zip", "cannot be unpacked")],
    ids=["without the split", "no zip"],
)
def test_an_archive_of_the_right_sum_and_wrong_content(
    body: bytes, reason: str, mirrors: Mirrors, tmp_path: Path
) -> None:
    row = mirrors.row("emnist-letters", good, bodies={"gzip.zip": body})
    with pytest.raises(DownloadError, match=reason):
        fetch(row, tmp_path)
    assert files_in(row.raw_folder(tmp_path)) <= {"gzip.zip"}


def test_a_root_that_cannot_be_written_is_said_so(mirrors: Mirrors, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    row = mirrors.row("mnist", good)
    with pytest.raises(OutputError, match=r"taken/data/MNIST/raw: cannot be written: .*--data-root"):
        fetch(row, tmp_path / "taken" / "data")
    assert mirrors.asked == [], "found out before anything is downloaded"


def test_files_can_be_read_by_whom_the_folder_lets(mirrors: Mirrors, tmp_path: Path) -> None:
    row = mirrors.row("mnist", good)
    fetch(row, tmp_path)
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in row.raw_folder(tmp_path).iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_a_terminal_gets_a_bar(
    mirrors: Mirrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    row = mirrors.row("mnist", cut, good)
    fetch(row, tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "train-images-idx3-ubyte.gz" in err and "\x1b[" in err
    assert "downloading" not in err and "cut off" in err
