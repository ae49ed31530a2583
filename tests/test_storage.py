"""Remote storage: whole objects, journals whole at any moment, one driver per sweep, an absence that is told."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_lines import event_of
from journals import mixed_sweep
from object_store import ObjectStore

from buttress.errors import BadInput, redacted
from buttress.journal import JournalWriter, find, lines, owner, read, remote
from buttress.journal import mirror as journal_mirror
from buttress.journal.mirror import LEASE, SEGMENT, leased, mirror, segments
from buttress.journal.remote import Upload
from buttress.storage import Storage, retry_while_away


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    made = ObjectStore()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.environment.items():
                patch.setenv(name, value)
            yield made
    finally:
        made.close()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty folder on either kind of storage."""
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "cache"))
    if request.param == "file":
        return Storage(f"file://{tmp_path}/store/toy-ab12cd")
    request.getfixturevalue("s3")
    return Storage(f"s3://sweeps/{tmp_path.name}/toy-ab12cd")


def test_objects_are_written_read_listed_and_deleted_by_name(store: Storage, tmp_path: Path) -> None:
    assert store.names() == [] and not store.exists("a/b.txt")
    with pytest.raises(FileNotFoundError):
        store.read("a/b.txt")
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    store.write("a/c/d.txt", b"three")
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    store.upload(tmp_path / "large", "a/large.bin")
    assert store.read("a/b.txt") == b"two" and store.exists("a/b.txt") and not store.exists("a")
    assert store.names("a") == ["b.txt", "large.bin"] and store.folders("a") == ["c"] and store.folders() == ["a"]
    assert store.download("a/large.bin", tmp_path / "here" / "file").read_bytes() == bytes(3 << 20)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["file"]
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert store.names("a") == ["large.bin"]
    again = pickle.loads(pickle.dumps(store))
    assert again.url == store.url and again.read("a/c/d.txt") == b"three"
    assert store.name == "toy-ab12cd" and store.parent.folders() == ["toy-ab12cd"]


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "nonsense://x"])
def test_a_url_that_names_no_storage_is_told_what_does(url: str) -> None:
    with pytest.raises(BadInput, match="s3://bucket/folder, gs://bucket/folder, or a local folder"):
        Storage(url)


def test_a_bucket_that_is_not_there_is_one_sentence(s3: ObjectStore) -> None:
    with pytest.raises(BadInput, match="there is no journal at this URL"):
        find("s3://nobucket/sweeps/toy-ab12cd")


def test_patience_ends_with_the_absence_and_with_the_time() -> None:
    calls = []

    def away() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("away")
        return "back"

    assert retry_while_away(away, for_s=10) == "back" and len(calls) == 3
    with pytest.raises(OSError, match="gone"):
        retry_while_away(lambda: _raise(OSError("gone")), for_s=0)
    with pytest.raises(FileNotFoundError):  # an answer
        retry_while_away(lambda: _raise(FileNotFoundError("no such object")), for_s=60)
    with pytest.raises(OSError, match="gone"):
        retry_while_away(lambda: _raise(OSError("gone")), for_s=60, over=lambda: True)


def _raise(error: BaseException) -> None:
    raise error


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.failures: list[BaseException] = []

    def upload(self, store: Storage, path: Path, **options: bool) -> Upload:
        return Upload(store, path, note=self.notes.append, fail=self.failures.append, **options)


def written(path: Path, kept: list[dict]) -> None:
    path.unlink(missing_ok=True)
    with JournalWriter(path) as writer:
        for line in kept:
            writer.write(event_of(line))


def test_the_journal_is_there_line_for_line_in_segments_and_readable_at_any_moment(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SEGMENT_BYTES", 2000)
    kept = mixed_sweep().lines
    path = tmp_path / "spool" / "journal.jsonl"
    told = Told()
    with JournalWriter(path) as writer:
        writer.write(event_of(kept[0]))
        upload = told.upload(store, path)
        for count, line in enumerate(kept[1:], 2):
            writer.write(event_of(line))
            if count % 7 == 0:
                upload.barrier(lambda: False)
                assert segments(store) == path.read_bytes()
                assert len(list(lines(mirror(store.url)))) == count
                assert owner(mirror(store.url)) is not None
        assert upload.close()
    assert len(store.names("journal")) > 3 and segments(store) == path.read_bytes()
    assert not store.exists(LEASE) and told.notes == [] and told.failures == []
    found = read(find(store.url).path)
    assert found.counts() == mixed_sweep().journal().counts() and owner(found.path or "") is None
    assert find(store.url.removesuffix("-ab12cd")).path == found.path  # by the sweep's name


def test_a_resumed_upload_adds_segments_and_a_spool_that_knows_more_is_kept(store: Storage, tmp_path: Path) -> None:
    kept = mixed_sweep().lines
    first = tmp_path / "first" / "journal.jsonl"
    written(first, kept[:20])
    assert Told().upload(store, first).close()
    folder = remote.fetch(store)
    assert (folder / "journal.jsonl").read_bytes() == first.read_bytes()
    with JournalWriter(folder / "journal.jsonl") as writer:  # the driver that died here while the storage was away
        writer.write(event_of(kept[20]))
    assert remote.fetch(store) == folder and len(list(lines(folder / "journal.jsonl"))) == 21
    assert Told().upload(store, folder / "journal.jsonl").close()
    assert segments(store) == (folder / "journal.jsonl").read_bytes() and len(store.names("journal")) == 2


def test_a_second_driver_is_refused_until_the_lease_is_over(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool" / "journal.jsonl"
    written(path, mixed_sweep().lines[:3])
    store.write(LEASE, json.dumps({"host": "elsewhere", "pid": 7, "time": time.time(), "token": "x"}).encode())
    assert (held := leased(store)) is not None and (held.host, held.pid) == ("elsewhere", 7)
    with pytest.raises(BadInput, match=r"run by another driver \(host elsewhere, pid 7.*not been heard of for 60 s"):
        Told().upload(store, path)
    monkeypatch.setattr(journal_mirror, "LEASE_S", 0.5)
    time.sleep(1.05)  # an object store's clock shows whole seconds
    assert leased(store) is None
    assert Told().upload(store, path).close()


def test_a_driver_whose_sweep_was_taken_over_stops_and_writes_no_more(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RENEW_S", 0.2)
    monkeypatch.setattr(remote, "UPLOAD_S", 0.1)
    path = tmp_path / "spool" / "journal.jsonl"
    written(path, mixed_sweep().lines[:3])
    old, new = Told(), Told()
    first = old.upload(store, path)
    second = new.upload(store, path, take_over=True)
    deadline = time.monotonic() + 20
    while not old.failures and time.monotonic() < deadline:
        time.sleep(0.05)
    assert isinstance(old.failures[0], remote.LeaseLost) and not new.failures
    with path.open("ab") as file:
        file.write(b'{"line":"end"}\n')
    first.close()
    assert leased(store) is not None  # not given back by the one that lost it
    assert second.close() and leased(store) is None


def test_a_take_over_insists_where_the_former_driver_renewed_in_the_same_instant(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool" / "journal.jsonl"
    written(path, mixed_sweep().lines[:3])
    former = json.dumps({"host": "elsewhere", "pid": 7, "time": time.time(), "token": "x"}).encode()
    store.write(LEASE, former)
    put, over = Storage.write, [former]

    def write(self: Storage, name: str, content: bytes) -> None:
        put(self, name, content)
        if name == LEASE and over:  # it had looked before our word came, and writes after it
            put(self, name, over.pop())

    monkeypatch.setattr(Storage, "write", write)
    upload = Told().upload(store, path, take_over=True)
    assert json.loads(store.read(LEASE))["token"] != "x" and not over
    assert upload.close()
    over.append(json.dumps({"host": "third", "pid": 8, "time": time.time(), "token": "y"}).encode())
    with pytest.raises(BadInput, match="has taken this sweep over"):
        Told().upload(store, path, take_over=True)


def test_an_outage_is_told_once_and_loses_nothing(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RENEW_S", 0.2)
    monkeypatch.setattr(remote, "UPLOAD_S", 0.1)
    store = Storage(f"s3://sweeps/{tmp_path.name}/toy-ab12cd")
    kept = mixed_sweep().lines
    path, told = tmp_path / "spool" / "journal.jsonl", Told()
    with JournalWriter(path) as writer:
        writer.write(event_of(kept[0]))
        upload = told.upload(store, path)
        upload.barrier(lambda: False)
        s3.proxy.close()
        try:
            for line in kept[1:]:
                writer.write(event_of(line))
            began = time.monotonic()
            upload.barrier(lambda: time.monotonic() - began > 3)
            assert len(told.notes) == 1 and "is away" in told.notes[0] and str(path.parent) in told.notes[0]
        finally:
            s3.proxy.open()
        upload.barrier(lambda: False)
        assert segments(store) == path.read_bytes()
        assert upload.close()
    assert len(told.notes) == 2 and "the storage is back after" in told.notes[1] and not told.failures


def test_a_segment_of_the_journal_has_a_number_that_sorts() -> None:
    assert SEGMENT.format(12) == "journal/000012.jsonl"


def test_credentials_in_a_url_are_refused_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from test_cli import call

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = "s3://AKIAKEY:c2V/jcm/V0@bucket/sweeps"
    for arguments in (
        ["run", "lithology", "--profile", "quick", "--out", url], ["run", "lithology", "--warm-start", url],
        ["run", "lithology", "--set", f"warm_start=['{url}']"], ["table", url], ["status", url], ["resume", url],
        ["export", url], ["report", url], ["why", url, "0"], ["replay", url, "lithology"], ["diff", url, url],
    ):  # fmt: skip
        code, out, err = call(capfd, *arguments)
        assert code == 2 and not any(part in out + err for part in ("c2V", "jcm", "V0", "AKIA")), (arguments, out, err)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"c2V" in path.read_bytes()] == []


@pytest.mark.parametrize(
    "url",
    ["s3://AKIAKEY:c2VjcmV0@bucket/sweeps", "s3://AKIAKEY:c2V/jcm/V0@bucket", "gs://c2VjcmV0@bucket/sweeps",
     "s3://bucket/sweeps?secret_key=c2VjcmV0", "ftp://me:c2VjcmV0@host/x"],
)  # fmt: skip
def test_no_storage_is_made_of_a_url_with_credentials(url: str) -> None:
    with pytest.raises(BadInput, match="holds credentials") as refused:
        Storage(url)
    assert not any(part in str(refused.value) for part in ("c2V", "jcm", "V0", "AKIA"))


def test_an_endpoint_with_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:c2VjcmV0@minio.example:9000")
    with pytest.raises(BadInput, match=r"AWS_ENDPOINT_URL: holds credentials.*https://\*\*\*@minio.example:9000"):
        Storage("s3://bucket/sweeps")


def test_a_path_with_an_at_sign_and_a_public_bucket_are_no_credentials(tmp_path: Path) -> None:
    Storage(f"file://{tmp_path}/me@example.com/sweeps").write("x", b"1")
    assert redacted("http://127.0.0.1:8080/me@example.com") == "http://127.0.0.1:8080/me@example.com"
    assert Storage("gs://anonymous@bucket/sweeps").url == "gs://anonymous@bucket/sweeps"
