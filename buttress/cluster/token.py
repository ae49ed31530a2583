"""The token that lets a user, and every node, into a cluster: made as a file that nobody else can read.

Ray makes one too (`ray get-auth-token --generate`), but prints it and leaves the file readable for everybody.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from buttress.errors import BadInput

#: Random bytes of a token, as many as Ray's own have; written as hexadecimal digits.
TOKEN_BYTES = 32


def default_path() -> Path:
    """Where Ray looks for the token: $RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def make(path: Path, *, force: bool = False) -> Path:
    """Writes a new token to `path` with mode 0600. Raises BadInput where one is there already, unless `force`."""
    if path.exists() and not force:
        problem = "there is a token already; running clusters know it"
        raise BadInput(problem, where=path, accepted="--force to replace it, --path for another place")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask
            file.write(secrets.token_hex(TOKEN_BYTES))
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise BadInput(f"the token cannot be written: {error.strerror}", where=path, key="--path") from None
    return path
