"""A study's store: study.db, SQLite in WAL mode with one writer, readable by plain sqlite3 and pandas.

A folder belongs to the spec that made it and to one process at a time.
"""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, trunk_id TEXT NOT NULL, fleet_id TEXT NOT NULL, member INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'finished', 'failed')), reason TEXT,
    N INTEGER, D INTEGER, C REAL, loss REAL,
    d_model INTEGER, n_layer INTEGER, n_head INTEGER, d_ff INTEGER, context INTEGER, vocab_size INTEGER,
    learning_rate REAL, rate_factor REAL, batch_tokens INTEGER, steps INTEGER, seed INTEGER,
    N_total INTEGER, C_full REAL, wall_s REAL
);
CREATE TABLE IF NOT EXISTS metrics (
    trunk_id TEXT, step INTEGER, tokens INTEGER, train_loss REAL, learning_rate REAL, grad_norm REAL,
    PRIMARY KEY (trunk_id, step)
);
CREATE TABLE IF NOT EXISTS evaluations (
    run_id TEXT, tokens INTEGER, distribution TEXT, loss REAL, n_tokens INTEGER,
    PRIMARY KEY (run_id, tokens, distribution)
);
CREATE TABLE IF NOT EXISTS noise_scale (
    trunk_id TEXT, tokens INTEGER, loss REAL, noise_scale REAL, grad_sq REAL, trace REAL,
    PRIMARY KEY (trunk_id, tokens)
);
"""
_TABLES = {"metric": "metrics", "evaluation": "evaluations", "noise_scale": "noise_scale"}


class StudyError(RuntimeError):
    """A study that cannot go on; the message says why, what is safe and what to do."""


class Store:
    """The open store of a study folder. Use as a context manager.

    spec_key: of the spec, as a new folder keeps it. same: whether another key, as an earlier version wrote it, is of this spec,
    too. Raises StudyError if another process holds the folder, or if it belongs to another spec; unlike: how that one differs.
    """

    def __init__(
        self,
        folder: Path,
        spec_text: str,
        spec_key: str,
        unlike: str = "",
        same: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / "study.lock", "a+")  # noqa: SIM115 - held as long as the store
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise StudyError(
                f"study folder {folder} is in use by another process (pid {holder}); wait for it or choose another folder."
            ) from None
        try:
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()))
            self._lock.flush()
            self._db = connect(folder, create=True)
            self._db.executescript(_SCHEMA)
            self._claim(spec_text, spec_key, unlike, same)
        except sqlite3.Error as error:
            self._lock.close()
            raise StudyError(
                f"{folder / 'study.db'} cannot be used ({error}); mend the cause (is the disk full?), or move the folder away."
            ) from error
        except BaseException:
            self._lock.close()
            raise

    def _claim(self, spec_text: str, spec_key: str, unlike: str, same: Callable[[str], bool]) -> None:
        known = self.facts().get("spec_key")
        if known not in (None, spec_key) and not same(known):
            raise StudyError(
                f"study folder {self.folder} belongs to another spec ({self.folder / 'study.toml'}{unlike}); "
                "choose another folder, or delete this one if its runs are not needed."
            )
        file = self.folder / "study.toml"
        if known is None or not file.exists():  # the spec first: a folder with a key and no spec could not be opened
            replace_text(file, spec_text)
        if known is None:
            self.set_facts({"spec_key": spec_key})

    def facts(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM study"))

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO study VALUES (?, ?)", [(k, str(v)) for k, v in facts.items()])
        self._db.commit()

    def add_runs(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds runs that are not there yet, as pending."""
        for row in rows:
            _insert(self._db, "runs", {**row, "status": "pending"}, "IGNORE")
        self._db.commit()

    def add_finished(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds runs that were trained elsewhere; those that are there stay as they are."""
        for row in rows:
            _insert(self._db, "runs", {**row, "status": "finished"}, "IGNORE")
        self._db.commit()

    def record(self, kind: str, row: Mapping[str, Any]) -> None:
        """Writes one row that a fleet emitted; writing the same row twice changes nothing. Call `commit` after a batch.

        Raises ValueError for a kind that no table takes: a row that is dropped is a result that is lost.
        """
        if kind in _TABLES:
            _insert(self._db, _TABLES[kind], row, "REPLACE")
        elif kind in ("finished", "failed"):
            changes = {**row, "status": kind}
            run_id = changes.pop("run_id")
            assignments = ", ".join(f"{name} = :{name}" for name in changes)
            # A finished run is never touched again, whatever a fleet that had to start over may report.
            self._db.execute(
                f"UPDATE runs SET {assignments} WHERE run_id = :run_id AND status = 'pending'",
                {**changes, "run_id": run_id},
            )
        else:
            raise ValueError(f"a fleet reported {kind!r}, which no table takes; please report this.")

    def commit(self) -> None:
        self._db.commit()

    def pending_fleets(self) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT DISTINCT fleet_id FROM runs WHERE status = 'pending'")}

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def spec_key(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()


def replace_text(file: Path, text: str) -> None:
    """Writes a file at once: killed in between, the old one is there, or none."""
    temporary = file.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)


def connect(folder: Path, *, create: bool = False) -> sqlite3.Connection:
    """Opens study.db: to write it (`create`), or to read it beside a writer. Raises StudyError if there is none."""
    path = folder / "study.db"
    if not create and not path.exists():
        raise StudyError(f"{folder} is no study folder: it holds no study.db. Run `pyscaling study` first.")
    db = sqlite3.connect(path, timeout=30)
    if create:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a finished run survives a power cut, not only kill -9
    db.row_factory = None
    return db


def read_table(folder: Path, table: str, where: str = "") -> dict[str, list[Any]]:
    """A table of the store, column by column. Raises StudyError if it cannot be read."""
    db = connect(folder)
    try:
        cursor = db.execute(f"SELECT * FROM {table} {where}")
        names = [column[0] for column in cursor.description]
        rows = cursor.fetchall()
    except sqlite3.Error as error:
        raise StudyError(
            f"{folder / 'study.db'} cannot be read ({error}); it holds no study yet, or is damaged."
        ) from error
    finally:
        db.close()
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _insert(db: sqlite3.Connection, table: str, row: Mapping[str, Any], conflict: str) -> None:
    columns = ", ".join(row)
    places = ", ".join(f":{name}" for name in row)
    db.execute(f"INSERT OR {conflict} INTO {table} ({columns}) VALUES ({places})", dict(row))
