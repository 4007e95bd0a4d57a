"""Fetches the Parquet files of a data set from the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from finetune.data.shards import MAX_SHARDS, PARQUET, shard_folders
from finetune.data.spec import HUB_DATA
from finetune.errors import HubError, HubRefusal
from finetune.hub.client import is_offline, open_api
from finetune.hub.download import fetch_file
from finetune.hub.errors import LogFn, log_nothing
from finetune.hub.repo import Remote, get_repo, remember_commit, snapshot_commit
from finetune.hub.repo_id import HubName, fullest_id, parse_name
from finetune.text import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONVERTED = "refs/convert/parquet"  # where the Hub itself puts Parquet files of data sets that have none
DEFAULT = "default"  # the configuration taken where there are several
MAX_LISTED = 20


@dataclass(frozen=True)
class HubDataset:
    """Parquet files that were fetched and checked, in a folder of the Hub's cache, which must not be changed."""

    folder: Path
    repo: str
    commit: str

    @property
    def id(self) -> str:
        """For records: hub-data:OWNER/NAME@COMMIT, which can be opened again."""
        return f"{HUB_DATA}{self.repo}@{self.commit}"


def fetch_dataset(spec: str, *, note: LogFn = log_nothing, bars: bool = False) -> HubDataset:
    """The Parquet files of hub-data:OWNER/NAME[@REVISION], fetched unless the cache has them, their hashes compared.

    Without a revision, and where the main branch has none, those that the Hub made of it (refs/convert/parquet).
    HubRefusal for what the Hub does not have or give; HubError when a transfer fails; OutputError for a full disk;
    SettingError for a name that is none.
    """
    name = parse_name(spec, kind="dataset")
    api = open_api(bars=bars)
    asked, remote, files = _find_files(api, name, note)
    folder, files = _choose_folder(name, files)
    if len(files) > MAX_SHARDS:
        raise HubRefusal(f"{name}: {len(files):,} Parquet files, and at most {MAX_SHARDS:,} are read")
    paths = {file: fetch_file(api, remote, file, note) for file in files}
    # The client has a folder for each commit that the Hub named as it sent a file; the set is read from one of them.
    places = {
        snapshot_commit(path, file): path.parents[len(PurePosixPath(file).parts) - 1] for file, path in paths.items()
    }
    if len(places) > 1:
        raise HubError(f"{name}: its files come from {len(places)} revisions, {listed(sorted(places))}; fetch it again")
    ((place, root),) = places.items()
    commit = fullest_id(str(remote.commit), [place])
    if not is_offline():
        remember_commit(asked, commit)  # after the last file, so that offline all of them are there
    return HubDataset(root / folder, name.repo, commit)


def _find_files(api: HfApi, name: HubName, note: LogFn) -> tuple[HubName, Remote, list[str]]:
    """The revision that has Parquet files, its state, and their names."""
    refusals, found = [], []
    for asked in [name] if name.revision else [name, replace(name, revision=CONVERTED)]:
        try:
            remote = get_repo(api, asked, note)
        except HubRefusal as error:
            refusals.append(error)
            if asked is name and not is_offline():
                raise
            continue
        if files := sorted(_parquet_files(remote)):
            return asked, remote, files
        found += sorted(remote.files)
    if not found:
        raise refusals[0]
    endings = sorted({PurePosixPath(file).suffix or file for file in found})
    raise HubRefusal(
        f"{name}: expected Parquet files, found {listed(endings[:MAX_LISTED])}; download the repository and name its "
        "folder, if it has pictures or tars"
    )


def _parquet_files(remote: Remote) -> Iterator[str]:
    for file in remote.files:
        parts = PurePosixPath(file).parts
        if file.lower().endswith(PARQUET) and not any(part.startswith((".", "/")) for part in parts):
            yield file


def _choose_folder(name: HubName, files: list[str]) -> tuple[str, list[str]]:
    """The folder of the files to take, and these: of several configurations the one called `default`."""
    folders = shard_folders(files)
    if len(folders) < 2:
        return "", files
    if DEFAULT not in folders:
        raise HubRefusal(
            f"{name}: expected one configuration, found {listed(folders[:MAX_LISTED])}; download one, for example with "
            f"hf download {name.repo} --repo-type dataset --include '{folders[0]}/*' --local-dir FOLDER, and name "
            f"FOLDER/{folders[0]}"
        )
    return DEFAULT, [file for file in files if file.startswith(f"{DEFAULT}/")]
