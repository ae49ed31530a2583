"""Writes Ray's authentication token to a file that only its owner can read, or closes one that is there to others.

Ray's own way, by itself at a first local start or by `ray get-auth-token --generate`, leaves it readable for everybody.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from buttress.errors import BadInput

#: Random bytes of a token, as many as Ray's own have; the file has them as hexadecimal digits.
TOKEN_BYTES = 32


def default_path() -> Path:
    """Returns where Ray looks for the token: $RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def ensure() -> None:
    """Makes the token that a Ray started on this machine will ask for, unless there is one; 0600 in either case.

    Does nothing where the user has given the token in the environment, or wants none (`RAY_AUTH_MODE`).

    Raises:
        BadInput: There is none and it cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = default_path()
    if path.is_file():
        close(path)
        return
    try:
        _write(path, replace=False)
    except OSError as error:
        problem = f"Ray's token cannot be written ({error.strerror})"
        accepted = "a HOME that can be written to, or a file there that RAY_AUTH_TOKEN_PATH names"
        raise BadInput(problem, where=path, accepted=accepted) from None


def close(path: Path) -> bool:
    """Takes away what others than the owner may do with a token; returns whether they could do anything.

    A file of another owner stays as it is.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        with contextlib.suppress(PermissionError):
            path.chmod(mode & 0o700)
            return True
    return False


def make(path: Path, *, force: bool = False) -> Path:
    """Writes a new token with mode 0600.

    Args:
        path: The file. Folders above it are made, for their owner only.
        force: Replace a token that is there.

    Returns:
        The file.

    Raises:
        BadInput: A token is there already (one that others could read is closed to them), or the file cannot be
            written.
    """
    try:
        written = _write(path, replace=force)
    except OSError as error:
        raise BadInput(f"the token cannot be written: {error.strerror}", where=path, key="--path") from None
    if not written:
        mended = "; others could read it, which is mended" if path.is_file() and close(path) else ""
        problem = f"there is a token already, which running clusters may use{mended}"
        raise BadInput(problem, where=path, accepted="--force to replace it, --path for another place")
    return path


def _write(path: Path, *, replace: bool) -> bool:
    """Writes a new token in one step; returns False where there is one that is not to be replaced."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # the umask may have taken rights away
            file.write(secrets.token_hex(TOKEN_BYTES))
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # of two that make one at a time, the second finds the first one's
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
