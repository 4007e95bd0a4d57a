"""What comes from other people: which files are opened, which JSON is taken, what is printed, and how much at once."""

import io
import json
import os
import socket
import threading
import time

import pytest
from PIL import Image

from finetune.checkpoint.limits import (
    MAX_ANCESTOR_LEN,
    MAX_CLASS_NAME_LEN,
    MAX_CLASSES,
    MAX_INPUT_SIZE,
    MAX_LINEAGE,
    MAX_NAME_LEN,
    MAX_TEXT_LEN,
    check_classes,
    check_metadata_values,
    check_ranges,
)
from finetune.data.image_io import MAX_SCANS, WeightedSemaphore, has_too_many_scans
from finetune.io.safe_open import open_regular, read_regular
from finetune.io.sanitize import escaped_json, is_printable, printable, printable_lines, quoted
from finetune.io.strict_json import MAX_DEPTH, parse_json
from finetune.system import available_memory


def why(call, *given, **more):
    with pytest.raises((OSError, ValueError)) as caught:
        call(*given, **more)
    return getattr(caught.value, "strerror", None) or str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_regular_file_is_read_whole_and_no_further_than_allowed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    assert why(read_regular, path, 4) == "5 bytes, and at most 4 are read"
    with open_regular(str(path)) as file:
        assert file.read(2) == b"12"
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 5) == b"12345"


def test_what_is_no_regular_file_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    start = time.monotonic()
    for name, said in {
        "pipe": "it is a pipe, not a regular file",
        "device": "it is a device, not a regular file",
        "socket": "it is a socket, not a regular file",
        "": "Is a directory",
        "loop": "Too many levels of symbolic links",
        "none": "No such file or directory",
        "a\0b": "this is no file name",
        "\ud800": "this is no file name",
    }.items():
        assert why(read_regular, tmp_path / name, 10) == said, name
        assert why(open_regular, tmp_path / name) == said, name
    server.close()
    assert time.monotonic() - start < 5


def test_a_pipe_that_takes_the_files_place_after_the_look_is_refused_too(tmp_path, monkeypatch):
    path, opened = tmp_path / "file", os.open
    path.write_bytes(b"x")

    def swapped(*given):
        path.unlink()
        os.mkfifo(path)
        return opened(*given)

    monkeypatch.setattr(os, "open", swapped)
    assert why(open_regular, path) == "it is a pipe, not a regular file"


def test_a_file_that_says_it_has_no_bytes_is_not_waited_for():
    assert read_regular("/proc/self/status", 10) == b""


# --- texts ------------------------------------------------------------------------------------------------------------


def test_only_what_moves_a_cursor_or_is_unseen_is_replaced():
    kept = "größer 三 😀 a\u00a0b\u3000c"
    assert is_printable(kept) and printable(kept) == kept
    for bad in ("\x1b[31m", "a\nb", "\x9b", "\x7f", "\u202e", "\u2028", "\ud800", "\x00", "\t"):
        assert not is_printable(bad)
        assert printable(f"<{bad}>") == "<" + "".join("�" if not is_printable(c) else c for c in bad) + ">"
    assert printable_lines("a\x1b\nb") == "a�\nb"


def test_quotes_are_cut_and_escaped():
    assert quoted('a"\x1b') == '"a\\"\\x1b"'
    assert quoted("x" * 100) == '"' + "x" * 57 + '..."' and quoted("x" * 100, 200) == '"' + "x" * 100 + '"'


def test_json_is_printed_without_what_moves_a_cursor_and_means_the_same():
    values = {"a\x9b": ["\x7f\u202e", "größer", "\U000e0001", {"deep": "\x1b"}]}
    text = escaped_json(json.dumps(values, indent=1, ensure_ascii=False))
    assert json.loads(text) == values and all(c == "\n" or c.isprintable() for c in text)
    assert "größer" in text and escaped_json('"\udcff\x7f"') == r'"\udcff\u007f"'


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_plain_json_is_read():
    text = '{"a": [1, -2.5, "größer", null, true, {"b": {}}], "c": 9223372036854775807, "\\ud83d\\ude00": 1e-400}'
    assert parse_json(text.encode(), 100) == parse_json(text, 100) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM"),
        ('{"a": 1, "b": 2, "a": 3}', 'the key "a" is there twice'),
        ('[{"x": {"\\u0061\\u001b": 1, "a\\u001b": 1}}]', 'the key "a\\u001b" is there twice'),
        ("[NaN]", "the number NaN, which is not finite"),
        ("[-Infinity]", "not finite"),
        ("[1e999]", "the number 1e999, which is not finite"),
        ("9223372036854775808", "does not fit 64 bits"),
        ("-" + "9" * 5000, "does not fit 64 bits"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than 30 levels"),
        ('["\\ud800"]', "half a character"),
        ('{"\\udc00": 1}', "half a character"),
        ("", "Expecting value"),
        ('{"a": 1}{', "Extra data"),
        ("[0,0,0,0,0,0]", "more than 5 values"),
        ("[[],[],[]]", "more than 5 values"),
        ("[{},{},{}]", "more than 5 values"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_plain_json_is_refused(text, said):
    assert said in why(parse_json, text, 5 if "more than" in said else 10**6)


def test_the_deepest_json_allowed():
    found = parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, 100)
    for _ in range(MAX_DEPTH - 1):
        (found,) = found
    assert found == []


# --- what metadata may say --------------------------------------------------------------------------------------------

SAID = {
    "model": "cnn",
    "arguments": {"width": 2, "name": "x"},
    "classes": ["a", "b"],
    "input": {"mean": [0.5], "std": [0.5]},
    "recipe": {"phases": [{"lr": 0.1, "train": "all", "ema": None}]},
    "data": {"name": "mnist"},
    "results": {"test": {"accuracy": 1}, "before": None},
    "lineage": [{"id": "x", "sha256": None, "task": "y"}],
    "versions": {"torch": "2"},
}


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_runs_write_holds():
    check_metadata_values(SAID)
    check_metadata_values(
        {
            **SAID,
            "classes": [*map(str, range(MAX_CLASSES - 1)), "x" * MAX_CLASS_NAME_LEN],
            "recipe": {"a": "x" * MAX_TEXT_LEN, "b": nested(19), "c": 2**63 - 1},
            "lineage": [{"id": "x" * MAX_ANCESTOR_LEN}] * MAX_LINEAGE,
            "input": {"mean": [-10, 10], "std": [0.001, 10]},
        }
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "x" * (MAX_NAME_LEN + 1)}, "model: expected 1 to 200 characters"),
        ({"model": "a\x1bb"}, 'model: expected 1 to 200 characters that can be shown, found "a\\x1bb"'),
        ({"classes": ["x"] * (MAX_CLASSES + 1)}, "classes: 50,001 of them; at most 50,000"),
        ({"classes": ["a", ""]}, "classes.1: expected 1 to 255 characters"),
        ({"classes": ["a" * 256]}, "classes.0: expected 1 to 255 characters"),
        ({"classes": ["\x1b[31mred"]}, "classes.0: "),
        ({"classes": ["a\u202eb"]}, "classes.0: "),
        ({"classes": ["三" * 255 for _ in range(2700)]}, "names of 2,065,500 bytes together; at most 2,000,000"),
        ({"arguments": {"a": [1]}}, "arguments.a: expected a number, true, false or a text"),
        ({"arguments": {"a": None}}, "arguments.a: expected a number"),
        ({"arguments": {"a": "x" * 201}}, "arguments.a: expected 1 to 200"),
        ({"arguments": {"a\n": 1}}, "arguments: expected 1 to 200"),
        ({"arguments": {"a": 2**63}}, "arguments: a number that does not fit 64 bits"),
        ({"arguments": {"a": float("nan")}}, "arguments: a number that is not finite"),
        ({"recipe": nested(21)}, "recipe: nested deeper than 20 levels"),
        ({"recipe": {"a": "x" * (MAX_TEXT_LEN + 1)}}, "recipe: a text of 100,001 characters"),
        ({"data": {"x" * 256: 1}}, "data: a key of over 255 characters"),
        ({"results": {"a": {"b": -(2**63) - 1}}}, "results: a number that does not fit"),
        ({"results": {"test": {"accuracy": 1.5}}}, "results.'test': expected an accuracy from 0 to 1"),
        ({"results": {"test": {"accuracy": "1"}}}, "results.'test': expected an accuracy"),
        ({"lineage": [{}] * 201}, "lineage: 201 ancestors; at most 200"),
        ({"lineage": [{}, {"secret": "x"}]}, "lineage.1: expected id, sha256, task alone"),
        ({"lineage": [{"id": 5}]}, "lineage.0.id: expected a text of at most 500 characters"),
        ({"lineage": [{"task": "x" * 501}]}, "lineage.0.task: expected a text"),
        ({"versions": {"torch": ""}}, "versions.torch: expected 1 to 200"),
        ({"versions": {"": "2"}}, "versions: expected 1 to 200"),
        ({"input": {"mean": [10.1], "std": [1]}}, "input.mean: expected numbers from -10 to 10, found [10.1]"),
        ({"input": {"mean": [0], "std": [0.0009]}}, "input.std: expected numbers from 0.001 to 10"),
    ],
)
def test_what_no_run_would_write_is_refused_with_its_place(changes, said):
    assert said in why(check_metadata_values, {**SAID, **changes})


def test_ranges_and_names_alone():
    check_ranges([], [])
    assert "input.mean" in why(check_ranges, [float("nan")], [])
    check_classes(["größer\u00a0三"])
    assert MAX_INPUT_SIZE == 4096


# --- pictures and memory ----------------------------------------------------------------------------------------------


def jpeg(scans):
    """A progressive JPEG whose last scan is there so often that it has this many."""
    file = io.BytesIO()
    Image.new("L", (16, 16), 90).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    start, have = content.rfind(b"\xff\xda"), content.count(b"\xff\xda")
    return content[:start] + content[start:-2] * (scans - have + 1) + content[-2:]


def test_scans_are_counted_in_the_picture_alone():
    assert not has_too_many_scans(jpeg(MAX_SCANS)) and has_too_many_scans(jpeg(MAX_SCANS + 1))
    assert not has_too_many_scans(jpeg(20) + b"\xff\xda\x00\x02" * 1000), "a film behind the picture"
    thumbnail = jpeg(MAX_SCANS - 10)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert not has_too_many_scans(jpeg(50)[:2] + segment + jpeg(50)[2:])
    for content in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xda",
        jpeg(10)[:-40],
        b"GIF89a" + b"\xff\xda" * 999,
    ):
        assert not has_too_many_scans(content)
    assert has_too_many_scans(b"\xff\xd8" + b"\xff\xe1\x00\x02" * 30_000)


def test_a_gate_lets_only_so_much_through_at_once():
    gate, inside, most, lock = WeightedSemaphore(10), 0, 0, threading.Lock()

    def work(amount):
        nonlocal inside, most
        with gate.share(amount):
            with lock:
                inside += min(amount, 10)
                most = max(most, inside)
            time.sleep(0.01)
            with lock:
                inside -= min(amount, 10)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (3, 4, 100, 10, 1, 6, 2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert 4 < most <= 10 and gate.taken == 0
    with pytest.raises(KeyError), gate.share(7):
        raise KeyError
    assert gate.taken == 0


def test_the_memory_of_a_container_counts(tmp_path):
    limit = tmp_path / "max"
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, expected in (("max\n", physical), ("4096\n", 4096), ("99999999999999999\n", physical)):
        limit.write_text(text)
        assert available_memory(limit) == expected
    assert available_memory(tmp_path / "none") == physical
