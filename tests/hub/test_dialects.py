"""Hubs that do not do what the contract says: what they leave out is noticed, said, and never passed over."""

from __future__ import annotations

import hashlib

import pytest
from hub_home import Loopback, loopback, make_checkpoint

from finetune.hub.file_facts import FileFacts, git_id_of
from finetune.hub.repo_id import fullest_id, is_commit_id, same_commit


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-dialects")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_faults(hub):
    hub.plant()
    hub.options()


@pytest.fixture(scope="module")
def checkpoint(hub):
    return make_checkpoint(hub.work / "cnn.safetensors")


@pytest.fixture(scope="module")
def other(hub):
    """Other weights, of the same size."""
    return make_checkpoint(hub.work / "other.safetensors", seed=1)


def deletion(repo):
    return f"{repo} was made by this push, which could not fill it; to delete it: hf repos delete {repo}"


# visibility


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("visibility", "made it public all the same"),
        pytest.param("says_private", "does not say whether", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_sent_before_the_hub_says_that_a_private_repository_is_private(
    hub: Loopback, checkpoint, option, says
):
    hub.options(**{option: False})
    before, repo = len(hub.log()), f"ada/{option}"
    said = hub.refused("push", checkpoint, repo, "--private", code=1)
    assert says in said and "nothing of the files was sent" in said and deletion(repo) in said
    sent = [row["path"] for row in hub.log()[before:] if row["method"] not in ("GET", "HEAD")]
    assert sent == ["/api/repos/create"]
    assert not hub.files(repo)
    hub.options(**{option: False})
    again = hub.refused("push", checkpoint, repo, "--private", code=2 if option == "visibility" else 1)
    assert "public" in again or says in again
    assert "hf repos delete" not in again, "this push did not make it"


# ids of commits


@pytest.mark.parametrize(
    "options",
    [
        {"ids": 64, "short_ids": 40},
        pytest.param({"ids": 64}, marks=pytest.mark.slow),
        pytest.param({"ids": "words"}, marks=pytest.mark.slow),
    ],
)
def test_a_commit_has_one_id_of_any_length(hub: Loopback, checkpoint, options, tmp_path):
    hub.options(**options)
    repo, home, out = f"ada/ids-{len(str(options))}", hub.new_home(), tmp_path / "x.safetensors"
    for _ in range(2):
        assert "the tag v1 is commit" in hub.worked("push", checkpoint, repo, "--tag", "v1").out
    head = hub.commits(repo)[0]["id"]
    assert len(hub.commits(repo)) == 2
    hub.worked("pull", f"{repo}@v1", "--out", out, home=home)
    for revision in ("v1", head, *([head[:40]] if "short_ids" in options else [])):
        found = hub.worked("pull", f"{repo}@{revision}", "--out", out, "--json", home=home, HF_HUB_OFFLINE="1").json
        assert found["id"] == f"hub:{repo}@{head}", revision
    assert out.read_bytes() == checkpoint.read_bytes()


def test_ids_are_compared_by_prefix_only_where_one_is_the_start_of_the_other():
    full = hashlib.sha256(b"x").hexdigest()
    assert same_commit(full, full[:40]) and same_commit(full[:7], full) and same_commit(None, None)
    assert not same_commit(full[:6], full) and not same_commit(full, full[1:]) and not same_commit(full, None)
    assert same_commit("r12", "r12") and not same_commit("release1", "release12")
    assert fullest_id(full[:9], [full[:40], None, "v1", full]) == full
    assert fullest_id(full[:9], [full, full[:20] + "0" * 44]) == full[:9], "two commits begin so"
    assert is_commit_id("Change_1.ab") and not any(map(is_commit_id, ("", "../x", "a/b", "a b", "x" * 200)))


def test_a_listed_size_or_hash_is_compared_and_an_unknown_one_is_not(tmp_path):
    content = b"some content"
    path = tmp_path / "x"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    known = [sha256.upper(), git_id_of(content, "sha1"), git_id_of(path, "sha256")]
    facts = [FileFacts.parse(text, 12) for text in known] + [FileFacts.of_large(f"sha256:{sha256}"), FileFacts()]
    assert all(one.fits(content) and one.fits(path) for one in facts)
    assert [one.fits(b"same length!") for one in facts] == [False] * 4 + [True]
    assert FileFacts.parse("3-abc", 11).mismatch(content) == "has 12 bytes, and not the 11 that the Hub says"


# another revision's bytes


def test_bytes_of_another_revision_are_refused_or_it_is_said_what_was_not_compared(
    hub: Loopback, checkpoint, other, tmp_path
):
    larger = make_checkpoint(tmp_path / "larger.safetensors", classes=["a", "b", "c", "d"])
    for repo, second in (("ada/two", other), ("ada/grown", larger)):
        hub.add(repo, {"model.safetensors": checkpoint.read_bytes()})
        hub.add(repo, {"model.safetensors": second.read_bytes()})
    out = tmp_path / "x.safetensors"
    pull = ("pull", "ada/two", "--out", out)
    hub.options(serves="first commit")
    said = hub.refused(*pull, code=1)
    assert "does not have the sha256" in said and "served from another revision" in said and not out.exists()
    hub.options(serves="first commit", lists="sizes")
    said = hub.refused("pull", "ada/grown", "--out", out, code=1)
    assert (
        f"has {checkpoint.stat().st_size:,} bytes, and not the {larger.stat().st_size:,}" in said and not out.exists()
    )
    assert "lists no hash of it for this commit; its size was compared" in hub.worked(*pull).err
    hub.options(lists="names")
    done = hub.worked(*pull)
    assert "lists no size or hash" in done.err and out.read_bytes() == other.read_bytes()
    assert hub.worked(*pull, "--quiet").err == ""


def test_a_wrong_file_does_not_take_the_right_one_of_another_commit_out_of_the_cache(
    hub: Loopback, checkpoint, other, tmp_path
):
    first = hub.add("ada/shared", {"model.safetensors": checkpoint.read_bytes()})
    hub.add("ada/shared", {"model.safetensors": other.read_bytes()})
    home, out = hub.new_home(), tmp_path / "x.safetensors"
    hub.worked("pull", f"ada/shared@{first}", "--out", out, home=home)
    hub.options(serves="first commit")
    hub.refused("pull", "ada/shared", "--out", out, code=1, home=home)
    hub.worked("pull", f"ada/shared@{first}", "--out", out, home=home, HF_HUB_OFFLINE="1")
    assert out.read_bytes() == checkpoint.read_bytes()


# what somebody else commits


def test_a_commit_that_a_hub_let_be_replaced_is_told(hub: Loopback, checkpoint):
    hub.options(parents=False)
    hub.add("ada/raced", {"README.md": b"# first"})
    hub.plant({"path": "/commit/main", "commit": {"README.md": "# theirs"}})
    said = hub.refused("push", checkpoint, "ada/raced", "--tag", "v1", code=1)
    ours, theirs = (commit["id"] for commit in hub.commits("ada/raced")[:2])
    assert f"somebody else committed {theirs}" in said and f"its README.md in commit {ours}" in said
    assert f"ada/raced@{theirs}" in said and "the tag v1 was not made" in said
    assert hub.files("ada/raced", theirs)["README.md"] == b"# theirs" and not hub.store.load("ada/raced")["tags"]


def test_a_commit_that_is_still_there_is_noted(hub: Loopback, checkpoint):
    hub.options(parents=False)
    hub.add("ada/kept", {"README.md": b"# first"})
    hub.plant({"path": "/commit/main", "commit": {"notes.txt": "theirs"}})
    assert "what it changed is still there" in hub.worked("push", checkpoint, "ada/kept").err
    assert hub.files("ada/kept")["notes.txt"] == b"theirs"


@pytest.mark.slow
def test_a_hub_without_a_history_cannot_be_checked(hub: Loopback, checkpoint):
    hub.options(commits=False)
    assert "does not list commits" in hub.worked("push", checkpoint, "ada/history").err


# pull requests, uploads that were never committed


@pytest.mark.parametrize(
    ("pulls", "code", "says"),
    [
        ("none", 2, "does not support it (501)"),
        pytest.param("main", 1, "the files are on its main branch", marks=pytest.mark.slow),
    ],
)
def test_a_hub_without_pull_requests_is_told(hub: Loopback, checkpoint, pulls, code, says):
    hub.options(pulls=pulls)
    said = hub.refused("push", checkpoint, f"ada/pr-{pulls}", "--create-pr", code=code)
    assert says in said and "has no pull requests" in said and "try again later" not in said
    assert (deletion("ada/pr-none") in said) == (pulls == "none")


def test_an_upload_that_was_never_committed_is_explained_and_filled_by_a_push(hub: Loopback, checkpoint, tmp_path):
    hub.options(lists="names", staged=["config.json", "model.safetensors"])
    hub.store.create("ada/staged", private=False)
    said = hub.refused("pull", "ada/staged", "--out", tmp_path / "x.safetensors")
    assert "never committed" in said and "Push it again" in said and not list(tmp_path.iterdir())
    hub.worked("push", checkpoint, "ada/staged")
    assert hub.files("ada/staged")["model.safetensors"] == checkpoint.read_bytes()


# hosts that are down


@pytest.mark.slow
def test_a_storage_host_that_is_down_is_named(hub: Loopback, checkpoint, tmp_path):
    hub.add("ada/stored", {"model.safetensors": checkpoint.read_bytes()})
    hub.options(storage="dead")
    unseen = make_checkpoint(tmp_path / "unseen.safetensors", seed=2)
    for words in (("pull", "ada/stored", "--out", tmp_path / "x.safetensors"), ("push", unseen, "ada/unsent")):
        said = hub.refused(*words, code=1, haste=500)
        assert f"no connection to the storage host 127.0.0.1:9, where {hub.endpoint} keeps" in said
    assert deletion("ada/unsent") in said


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_server_that_restarts_is_waited_for(hub: Loopback, checkpoint, quiet, tmp_path):
    hub.add("ada/again", {"model.safetensors": checkpoint.read_bytes()})
    out = tmp_path / "x.safetensors"
    pull, push = ("pull", "ada/again", "--out", out), ("push", checkpoint, "ada/again")
    hub.plant({"path": "whoami" if quiet else "/api/models/ada/again", "restart": 4 / 20})  # pauses are as much shorter
    done = hub.worked(*(push if quiet else pull), *quiet)
    assert (
        done.err.count("refuses connections; trying again for 6 s") == (0 if quiet else 1) and "Error" not in done.err
    )
    assert (done.err == "") == bool(quiet)
