"""Replies of endpoints kept by what was asked: nothing that was answered is paid for twice, also after a break.

SQLite by the standard library, in a file that several processes may use at once; text alone, never a pickle, which is
what ``diskcache`` would read back.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import parse_json

WAIT_SECONDS = 60.0  # for another process that is writing
# Keys in one statement: SQLite allows at least some hundreds of variables.
AT_ONCE = 500
FILE_NAME = "replies.sqlite"


def default_cache() -> Path:
    """Return where replies are kept where no file is named: in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "safety-subspaces" / FILE_NAME


def key_of(request: Mapping[str, Any]) -> str:
    """Return the hash of a request: its address, its route and its body."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class RequestCache:
    """A table of replies.

    Args:
        path: The file; made where there is none yet.

    Raises:
        InputError: The file is no such cache, or cannot be written; also later, as when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def find(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the replies that the table has, by key."""
        wanted = list(dict.fromkeys(keys))
        replies: dict[str, dict[str, Any]] = {}
        with self._connected() as connection:
            for start in range(0, len(wanted), AT_ONCE):
                part = wanted[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", part)
                replies |= {key: entry for key, reply in rows if (entry := _entry(reply)) is not None}
        return replies

    def keep(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep one reply; it is on the disk when this returns."""
        with self._connected() as connection:
            connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as connection, connection:
                yield connection
        except (OSError, sqlite3.Error, UnicodeError) as error:
            raise InputError(f"the cache {self.path} cannot be used ({error}); name another file by cache") from error


def _entry(reply: object) -> dict[str, Any] | None:
    """Read what the table has for a key; ``None`` for what was not written here, so that it is asked again."""
    try:
        entry = parse_json(str(reply))
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("text"), str) else None
