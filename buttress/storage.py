"""Folders on remote storage: `s3://bucket/sweeps`, `gs://bucket/sweeps`, or any other URL that pyarrow reads.

Credentials are found where the cloud's own tools find them (environment, configuration files, the machine's role).
`AWS_ENDPOINT_URL` names another server that speaks S3. An object that is not there raises FileNotFoundError; anything
else that goes wrong raises OSError, within seconds: the caller decides how long to try again (`retry_while_away`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from buttress.errors import BadInput, redacted

T = TypeVar("T")

#: What a person may write after `--out` and for SWEEP.
SCHEMES = ("s3", "gs", "file")
_ACCEPTED = "s3://bucket/folder, gs://bucket/folder, or a local folder"


def is_url(text: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(text)


class Storage:
    """The folder at `url`. Cheap to make, safe to share between threads; pickled by its URL.

    Raises BadInput for a URL that names no storage.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._files, self._root = _filesystem(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.url,)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL's path."""
        return self._root.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Storage:
        """The folder that this one lies in; of a bucket: itself."""
        return Storage(self.url.rsplit("/", 1)[0]) if "/" in self._root.strip("/") else self

    def folder(self, name: str) -> Storage:
        return Storage(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        with self._files.open_input_file(f"{self._root}/{name}") as file:
            content: bytes = file.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """The whole object, or nothing of it: a reader never sees a part."""
        self._put(name, lambda file: file.write(content))

    def upload(self, path: Path, name: str) -> None:
        """A local file, in parts where it is large."""
        with path.open("rb") as source:
            self._put(name, lambda file: shutil.copyfileobj(source, file, 8 << 20))

    def _put(self, name: str, fill: Callable[[Any], Any]) -> None:
        path = f"{self._root}/{name}"
        if self._files.type_name != "local":
            with self._files.open_output_stream(path) as file:
                fill(file)
            return
        draft = f"{path}.{os.getpid()}.part"  # a local folder has no whole objects, but it can rename
        self._files.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with self._files.open_output_stream(draft) as file:
            fill(file)
        self._files.move(draft, path)

    def download(self, name: str, path: Path) -> Path:
        """The object as the local file `path`, which takes its place in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with self._files.open_input_file(f"{self._root}/{name}") as source, draft.open("wb") as file:
                shutil.copyfileobj(source, file, 8 << 20)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def names(self, under: str = "") -> list[str]:
        """Objects in the folder `under` (not below it), sorted; a folder that is not there has none."""
        return sorted(info.base_name for info in self._list(under) if info.is_file)

    def folders(self, under: str = "") -> list[str]:
        return sorted(info.base_name for info in self._list(under) if not info.is_file)

    def _list(self, under: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        found: list[Any] = self._files.get_file_info(
            FileSelector(f"{self._root}/{under}".rstrip("/"), allow_not_found=True)
        )
        return [info for info in found if not info.base_name.endswith(".part")]

    def exists(self, name: str) -> bool:
        (info,) = self._files.get_file_info([f"{self._root}/{name}"])
        return bool(info.is_file)

    def modified(self, name: str) -> float | None:
        """When an object was last written, in seconds of the storage's own clock; None where it does not say."""
        (info,) = self._files.get_file_info([f"{self._root}/{name}"])
        return info.mtime_ns / 1e9 if info.mtime_ns is not None else None

    def clock(self) -> float | None:
        """What time it is on the storage: an object is written for it, and deleted; None where it does not say."""
        probe = f"clock-{secrets.token_hex(8)}"
        self.write(probe, b"")
        try:
            return self.modified(probe)
        finally:
            self.delete(probe)

    def delete(self, name: str) -> None:
        """Nothing happens where there is no such object."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(f"{self._root}/{name}")


def _filesystem(url: str) -> tuple[Any, str]:
    """pyarrow's file system of a URL, and the path in it."""
    from pyarrow import fs

    scheme = urlsplit(url).scheme
    _refuse_credentials(url, "URL")
    if scheme not in SCHEMES:
        raise BadInput(f"{scheme}:// is not a known kind of storage", key="URL", value=url, accepted=_ACCEPTED)
    try:
        if scheme != "s3":
            found: tuple[Any, str] = fs.FileSystem.from_uri(url)
            return found
        options: dict[str, Any] = {
            "connect_timeout": 3.0,
            "request_timeout": 20.0,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=2),
            "background_writes": False,
        }
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            _refuse_credentials(endpoint, "AWS_ENDPOINT_URL")
            options |= {"endpoint_override": endpoint, "scheme": urlsplit(endpoint).scheme or "https"}
            options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        elif region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            options["region"] = region
        parts = urlsplit(url)
        if not parts.netloc:
            raise ValueError("a bucket is missing")
        return fs.S3FileSystem(**options), parts.netloc + parts.path.rstrip("/")
    except (ValueError, OSError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
        problem = f"no storage can be reached by this URL ({error})"
        raise BadInput(problem, key="URL", value=url, accepted=_ACCEPTED) from None


def _refuse_credentials(url: str, key: str) -> None:
    """Raises BadInput for a URL that holds credentials: it would stand in logs, in a spool and in a journal."""
    parts = urlsplit(url)
    if redacted(url) != url and not (parts.scheme == "gs" and parts.netloc.startswith("anonymous@")):
        problem = "holds credentials: they belong in the environment (AWS_ACCESS_KEY_ID, ...) or the cloud's own files"
        raise BadInput(problem, key=key, value=url, accepted=_ACCEPTED)


def retry_while_away(call: Callable[[], T], *, for_s: float, over: Callable[[], bool] = lambda: False) -> T:
    """Calls again and again while storage is away.

    Args:
        call: What to call; a FileNotFoundError of it is an answer, not an absence.
        for_s: Seconds after which to give up.
        over: Whether to give up now.

    Raises:
        OSError: The last one, after `for_s` seconds or as soon as `over()`.
    """
    deadline, pause = time.monotonic() + for_s, 0.25
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError:
            if time.monotonic() > deadline or over():
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def first_line(error: BaseException) -> str:
    return redacted((str(error).splitlines() or [type(error).__name__])[0])


def unreachable(store: Storage, error: OSError) -> BadInput:
    """The error for a person who asked for something on storage that does not answer."""
    problem = f"the storage cannot be reached ({first_line(error)})"
    return BadInput(problem, key="URL", value=store.url, accepted="storage that answers, and credentials it takes")
