"""Writes the authentication token of a Ray cluster to a file that only its owner can read.

Ray's own `ray get-auth-token --generate` prints the token, and leaves the file readable for everybody.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from buttress.errors import BadInput

#: Random bytes of a token, as many as Ray's own have; the file has them as hexadecimal digits.
TOKEN_BYTES = 32


def default_path() -> Path:
    """Returns where Ray looks for the token: $RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def make(path: Path, *, force: bool = False) -> Path:
    """Writes a new token with mode 0600.

    Args:
        path: The file. Folders above it are made, for their owner only.
        force: Replace a token that is there.

    Returns:
        The file.

    Raises:
        BadInput: A token is there already, or the file cannot be written.
    """
    if path.exists() and not force:
        problem = "there is a token already, which running clusters may use"
        raise BadInput(problem, where=path, accepted="--force to replace it, --path for another place")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # the umask may have taken rights away
            file.write(secrets.token_hex(TOKEN_BYTES))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise BadInput(f"the token cannot be written: {error.strerror}", where=path, key="--path") from None
    return path
