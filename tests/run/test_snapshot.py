"""Snapshots come back to the bit, or are said to be damaged and the one before comes back."""

import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from finetune.run.snapshot import FACTS, MANIFEST, STATE, Snapshot, SnapshotStore


def numbers(seed, shape, dtype):
    """Any bits of that type: NaN, infinities and negative zeros among them."""
    size = torch.empty((), dtype=dtype).element_size()
    drawn = torch.randint(0, 256, (math.prod(shape) * size,), generator=torch.manual_seed(seed), dtype=torch.uint8)
    return (drawn % 2).bool().reshape(-1).view(shape) if dtype == torch.bool else drawn.view(dtype).view(shape)


TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def state():
    return {
        **{f"every/{dtype}": numbers(1, (3, 5), dtype) for dtype in TYPES},
        "step": torch.tensor(123456789012, dtype=torch.int64),
        "loss": torch.tensor(0.1, dtype=torch.bfloat16),
        "rng": torch.get_rng_state(),
        "nothing": torch.empty(0, 4),
        "channels_last": numbers(2, (4, 3, 5, 5), torch.float32).to(memory_format=torch.channels_last),
        "transposed": numbers(3, (4, 7), torch.float32).T,
        "part": numbers(4, (9, 2), torch.int16)[1::3, :1],
        "parameter": torch.nn.Linear(3, 2).weight,
        "größe/猫": numbers(5, (2,), torch.float32),
    }


FACTS_OF_A_RUN = {
    "step": 3,
    "rates": [0.1, 1e-300, 5e-324, 1 / 3],
    "text": 'größer 猫 \udc80 \0 "\\',
    "nested": {"none": None, "yes": True, "list": [], "dict": {}},
    "big": 2**63 + 1,
}


def bits(tensor):
    return tensor.dtype, tensor.shape, bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def numbered(step):
    return Snapshot({"w": torch.full((50,), float(step))}, {"step": step})


@pytest.fixture
def store(tmp_path):
    return SnapshotStore(tmp_path / "runs" / "x" / "snapshots")


def steps(store):
    """The steps of the snapshots that are there, by folder; every folder has its three files and nothing else is."""
    found = {}
    for folder in sorted(store.folder.iterdir()):
        assert sorted(path.name for path in folder.iterdir()) == [FACTS, MANIFEST, STATE]
        found[folder.name] = json.loads((folder / FACTS).read_bytes())["step"]
    return found


# --- round trips ------------------------------------------------------------------------------------------------------


def test_everything_comes_back_to_the_bit(store):
    given = state()
    place = store.save(Snapshot(given, FACTS_OF_A_RUN))
    found, faults = SnapshotStore(store.folder).newest()
    assert faults == [] and place == store.folder / "000001"
    assert found.facts == FACTS_OF_A_RUN
    assert found.tensors.keys() == given.keys()
    for name, tensor in given.items():
        assert bits(found.tensors[name]) == bits(tensor), name


def test_the_state_is_a_safetensors_file_for_everyone(store):
    given = state()
    place = store.save(Snapshot(given, {}))
    assert {name: bits(t) for name, t in load_file(place / STATE).items()} == {n: bits(t) for n, t in given.items()}
    content = (place / STATE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert (8 + length + entry["data_offsets"][0]) % given[name].element_size() == 0, f"{name} is not aligned"


def test_the_same_snapshot_has_the_same_bytes(store):
    """The order in which dicts were filled, strides, and what was saved before do not matter."""
    first = store.save(Snapshot(state(), FACTS_OF_A_RUN))
    turned = {name: t.clone(memory_format=torch.contiguous_format) for name, t in reversed(state().items())}
    second = store.save(Snapshot(turned, dict(reversed(FACTS_OF_A_RUN.items()))))
    for name in (STATE, FACTS, MANIFEST):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).stat().st_mode & 0o777 == 0o644


def test_the_manifest_has_sizes_and_hashes(store):
    place = store.save(numbered(1))
    assert json.loads((place / MANIFEST).read_bytes()) == {
        "format": 1,
        "files": {
            name: {
                "size": (place / name).stat().st_size,
                "sha256": hashlib.sha256((place / name).read_bytes()).hexdigest(),
            }
            for name in (STATE, FACTS)
        },
    }


def test_what_comes_back_can_be_changed(store):
    store.save(numbered(1))
    found, _ = store.newest()
    found.tensors["w"].add_(1)
    assert found.tensors["w"][0] == 2


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_facts_are_json(store, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(Snapshot({}, {"loss": number}))
    assert not store.folder.exists()


def test_an_empty_snapshot_is_one(store):
    store.save(Snapshot({}, {}))
    assert store.newest() == (Snapshot({}, {}), [])


# --- how many there are -----------------------------------------------------------------------------------------------


def test_nothing_there_is_no_snapshot(store):
    assert store.newest() == (None, [])
    store.clear()
    assert not store.folder.exists()


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_ones_are_kept(tmp_path, keep):
    store = SnapshotStore(tmp_path / "s", keep)
    for step in range(1, 9):
        if step % 3 == 0:  # as in a new process
            store = SnapshotStore(tmp_path / "s", keep)
        store.save(numbered(step))
        assert steps(store) == {f"{n:06}": n for n in range(max(1, step - keep + 1), step + 1)}
        assert store.newest()[0].facts == {"step": step}


def test_numbers_go_on_after_clear(store):
    for step in (1, 2):
        store.save(numbered(step))
    store.clear()
    assert not store.folder.exists() and store.newest() == (None, [])
    assert store.save(numbered(3)).name == "000003"
    other = SnapshotStore(store.folder)
    other.clear()
    assert other.save(numbered(4)).name == "000004"


def test_numbers_grow_beyond_their_width(store):
    place = store.save(numbered(1))
    place.rename(store.folder / "999999")
    assert store.save(numbered(2)).name == "1000000"
    assert store.save(numbered(3)).name == "1000001"
    assert list(steps(store).values()) == [2, 3] and store.newest()[0].facts == {"step": 3}


def test_strangers_are_left_alone_and_what_a_killed_save_left_is_swept(store):
    store.save(numbered(1))
    for name in ("notes.txt", "7", "000_01", "٠٠٠٠٠٩", "0000009", "9" * 200, ".000007", ".x.part"):
        (store.folder / name).mkdir()
    for name in (".000002.0123abcd.part", ".000001.ffffffff.part"):
        (store.folder / name / "deep").mkdir(parents=True)
        (store.folder / name / STATE).write_bytes(b"half")
    before = {path.name for path in store.folder.iterdir()}
    found, faults = store.newest()
    assert found.facts == {"step": 1} and faults == []
    store.save(numbered(2))
    assert {path.name for path in store.folder.iterdir()} == {n for n in before if not n.endswith("d.part")} - {
        ".000001.ffffffff.part"
    } | {"000002"}


# --- damage -----------------------------------------------------------------------------------------------------------


def missing(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def longer(path):
    path.write_bytes(path.read_bytes() + b"\n")


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_loop(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("name", [STATE, FACTS, MANIFEST])
@pytest.mark.parametrize("damage", [missing, cut_short, empty, longer, a_folder, a_loop])
def test_a_damaged_one_is_told_and_the_one_before_is_used(store, name, damage):
    for step in (1, 2):
        place = store.save(numbered(step))
    damage(place / name)
    found, faults = SnapshotStore(store.folder).newest()
    if (name, damage) == (MANIFEST, longer):  # white space after JSON is none of its business
        assert found.facts == {"step": 2}
        return
    assert found.facts == {"step": 1}
    (fault,) = faults
    assert fault.startswith(f"{place}: this snapshot is damaged and was passed over: {name} ")
    assert "\n" not in fault


@pytest.mark.parametrize("name", [STATE, FACTS, MANIFEST])
def test_no_flipped_bit_goes_unnoticed(store, name):
    for step in (1, 2):
        place = store.save(numbered(step))
    content = (place / name).read_bytes()
    for at in range(len(content)):
        (place / name).write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        found, faults = SnapshotStore(store.folder).newest()
        same = found.facts == {"step": 2} and bits(found.tensors["w"]) == bits(numbered(2).tensors["w"])
        assert same or (found.facts == {"step": 1} and len(faults) == 1), at
        assert not same or name == MANIFEST  # "files": white space, a letter of a hash in upper case is refused


MANIFESTS = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"1",
    b"null",
    b'"' + b"x" * 20_000 + b'"',
    b"[" * 9_000,
    b'{"format": 1}',
    b'{"format": 1, "files": []}',
    b'{"format": 1, "files": {}}',
    b'{"format": 2, "files": {}}',
    b'{"format": NaN, "files": {}}',
    b'{"format": "%s", "files": {}}' % (b"x" * 5000),
    b'{"format": 1, "files": {"state.safetensors": null, "facts.json": null}}',
    b'{"format": 1, "files": {"state.safetensors": {"size": "1", "sha256": 2}, "facts.json": {}}}',
    b'{"format": 1, "files": {"state.safetensors": {"size": %s, "sha256": ""}}}' % (b"9" * 5000),
]


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
def test_any_manifest_is_read_without_harm(store, content):
    for step in (1, 2):
        place = store.save(numbered(step))
    (place / MANIFEST).write_bytes(content)
    found, faults = store.newest()
    assert found.facts == {"step": 1} and len(faults) == 1 and len(faults[0]) < len(str(place)) + 200


def forge(place, name, content):
    """Another file with a manifest that agrees with it."""
    (place / name).write_bytes(content)
    values = json.loads((place / MANIFEST).read_bytes())
    values["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / MANIFEST).write_text(json.dumps(values))


def header(values, body=b""):
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (FACTS, b"[]"),
        (FACTS, b"{"),
        (FACTS, b'{"loss": NaN}'),
        (FACTS, b'{"x": ' + b"[" * 100_000),
        (FACTS, b'{"x": ' + b"9" * 5000 + b"}"),
        (FACTS, b'{"x": "\xff"}'),
        (STATE, b""),
        (STATE, b"\x80\x02}q\x00."),
        (STATE, header({"w": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, b"1234")),
        (STATE, header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234")),
        (STATE, header({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234")),
        (STATE, header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234")),
        (STATE, header({"w": 3}, b"1234")),
    ],
)
def test_a_forged_one_is_refused_too(store, name, content):
    for step in (1, 2):
        place = store.save(numbered(step))
    forge(place, name, content)
    found, faults = store.newest()
    assert found.facts == {"step": 1} and len(faults) == 1


def test_all_damaged_is_none_with_a_sentence_each(store):
    for step in (1, 2):
        missing(store.save(numbered(step)) / STATE)
    found, faults = store.newest()
    assert found is None
    assert [fault.partition(":")[0] for fault in faults] == [str(store.folder / n) for n in ("000002", "000001")]


def test_a_damaged_one_takes_no_whole_ones_place(store):
    """Had it been kept as one of two, the next fault would leave none."""
    for step in (1, 2):
        place = store.save(numbered(step))
    missing(place / STATE)
    assert store.newest()[0].facts == {"step": 1}
    store.save(numbered(3))
    assert steps(store) == {"000001": 1, "000003": 3}


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "s").write_text("")
    store = SnapshotStore(tmp_path / "s")
    assert store.newest() == (None, [])
    with pytest.raises(
        Exception, match=r"s/000001: cannot be written .*; the snapshots before this one are as they were"
    ):
        store.save(numbered(1))
