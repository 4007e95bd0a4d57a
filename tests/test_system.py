"""What a process of ours sets for itself before it trains, and what it leaves to the person."""

import ctypes

import pytest

from finetune import system as machine

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_")


@pytest.fixture
def kept(monkeypatch):
    """What malloc was told, in place of telling it."""
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    told = {}

    class Library:
        def __init__(self, name):
            assert name is None

        def mallopt(self, what, value):
            told[what] = value

    monkeypatch.setattr(ctypes, "CDLL", Library)
    return told


def test_threads_spin_shortly_and_memory_is_kept(kept, monkeypatch):
    machine.configure_process()
    assert machine.os.environ["GOMP_SPINCOUNT"] == "10000"
    assert kept == {-1: 2**30, -3: 2**25}


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_person_chose_stays(kept, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    machine.configure_process()
    if name.startswith(("OMP", "GOMP")):
        assert machine.os.environ.get("GOMP_SPINCOUNT") == ("1" if name == "GOMP_SPINCOUNT" else None) and kept
    else:
        assert machine.os.environ["GOMP_SPINCOUNT"] == "10000" and not kept


def test_another_c_library_is_no_obstacle(kept, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    machine.configure_process()
    assert not kept
