"""The autotuner's cache: many writers, killed ones, torn lines, foreign files, full disks, jumping clocks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
from tilesmith.autotune import store as store_module
from tilesmith.autotune.lookup import latest_choices
from tilesmith.autotune.rows import VERSION, fault_of, filed, filed_of, identity, text_of
from tilesmith.autotune.store import Store, cache_directory

from .tuning import PRETENDED, Size, choice, in_directory, time

CONFIG = {"BLOCK": 32, "WARPS": 4}


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert store.rows() == []
    assert not store.directory.exists()  # type: ignore[union-attr]
    rows = [time(Size(64), CONFIG, float(i + 1)) for i in range(5)]
    for row in rows:
        store.append(row)
    assert store.rows() == rows
    assert Store(tmp_path / "cache").rows() == rows


def test_eight_processes_write_fifty_rows_each(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tilesmith.autotune.store import Store
        from tests.tuning import Size, time
        store = Store(Path(sys.argv[1]))
        for i in range(50):
            store.append(time(Size(64), {"BLOCK": 32, "WARPS": 4}, 1.0 + i, writer=sys.argv[2]))
        store.append(time(Size(64), {"BLOCK": 32, "WARPS": 4}, 1.0))  # of all the same but for its time
        """
    writers = [python(code, str(tmp_path), str(i)) for i in range(8)]
    assert [w.wait(120) for w in writers] == [0] * 8
    rows = Store(tmp_path).rows()
    assert sum("writer" in row for row in rows) == 400
    assert len({(row["writer"], row["time_us"]) for row in rows if "writer" in row}) == 400
    files, count = Store(tmp_path).compact()
    assert (files, count) == (8, len(rows))
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert sorted(map(identity, Store(tmp_path).rows())) == sorted(map(identity, rows))


def test_two_writers_see_each_other(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.append(time(Size(64), CONFIG, 1.0))
    assert len(second.rows()) == 1
    second.append(time(Size(64), CONFIG, 2.0))
    first.append(time(Size(64), CONFIG, 3.0))
    assert len(first.rows()) == len(second.rows()) == 3
    assert not second.refresh()


def test_a_killed_writer_loses_at_most_a_line(tmp_path: Path) -> None:
    """The line without an end is dropped without a word; the others count; what it held up is free for compact."""
    code = """
        import os, signal, sys
        from pathlib import Path
        from tilesmith.autotune.store import Store
        from tests.tuning import Size, time
        store = Store(Path(sys.argv[1]))
        for i in range(3):
            store.append(time(Size(64), {"BLOCK": 32, "WARPS": 4}, 1.0 + i))
        os.write(store._journal._file, b'{"v":1,"kind":"ti')
        os.kill(os.getpid(), signal.SIGKILL)
        """
    assert python(code, str(tmp_path)).wait(60) == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = Store(tmp_path)
        assert len(store.rows()) == 3
        store.append(time(Size(64), CONFIG, 9.0))
        assert Store(tmp_path).compact() == (0, 3), "one file alone, the other is being written"
        store.close()
        assert Store(tmp_path).compact() == (2, 4)
        assert len(Store(tmp_path).rows()) == 4


def test_compact_spares_who_still_writes(tmp_path: Path) -> None:
    writer = Store(tmp_path)
    writer.append(time(Size(64), CONFIG, 1.0))
    for i in range(2):
        other = Store(tmp_path)
        other.append(time(Size(64), CONFIG, 2.0 + i))
        other.close()
    code = """
        import sys
        from pathlib import Path
        from tilesmith.autotune.store import Store
        print(*Store(Path(sys.argv[1])).compact())
        """
    process = python(code, str(tmp_path))
    assert process.communicate(timeout=60)[0].split() == ["2", "2"]
    writer.append(time(Size(64), CONFIG, 4.0))
    assert len(Store(tmp_path).rows()) == len(writer.rows()) == 4


def test_compact_that_dies_before_it_deletes_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for i in range(3):
        store = Store(tmp_path)
        rows.append(time(Size(64), CONFIG, 1.0 + i))
        store.append(rows[-1])
        store.close()

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).compact()
    assert len(list(tmp_path.glob("*.jsonl"))) == 4
    assert sorted(map(identity, Store(tmp_path).rows())) == sorted(map(identity, rows))


def test_foreign_damaged_and_future_lines_are_said_once_and_kept(tmp_path: Path) -> None:
    good = time(Size(64), CONFIG, 1.0)
    future = {**good, "v": VERSION + 1, "what": "nobody knows"}
    lines = ['{"a": 1}', "[]", "not json", text_of(good), text_of({**good, "config": 3}), text_of(future), '{"v":1,"ki']
    (tmp_path / "other.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "README.txt").write_text("not a cache")
    store = Store(tmp_path)
    with pytest.warns(UserWarning, match="ignored") as said:
        assert store.rows() == [good]
    messages = " ".join(str(w.message) for w in said)
    assert messages.count("other.jsonl") == len(said) == 3
    assert "2 lines are damaged" in messages
    assert "3 lines are not rows of a tilesmith cache" in messages
    assert "1 line is of a newer tilesmith" in messages
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.rows() == [good]
    for i in range(2):
        mine = Store(tmp_path)
        mine.append(time(Size(64), CONFIG, 2.0 + i))
        mine.close()
    before = (tmp_path / "other.jsonl").read_text()
    assert Store(tmp_path).compact()[0] == 2
    assert (tmp_path / "other.jsonl").read_text() == before, "what we cannot read is not ours to rewrite"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "foreign"),
        ([], "foreign"),
        ({"v": "1", "kind": "time"}, "foreign"),
        ({"v": 1, "kind": "poem"}, "foreign"),
        ({"v": 99, "kind": "poem"}, "future"),
        ({"v": 1, "kind": "time"}, "damaged"),
        (time(Size(64), CONFIG), None),
        (time(Size(64), CONFIG, 0.0), "damaged"),
        (time(Size(64), CONFIG, float("nan")), "damaged"),
        (time(Size(64), CONFIG, float("inf")), "damaged"),
        (time(Size(64), CONFIG, 1.0, status="fine"), "damaged"),
        (time(Size(64), CONFIG, 1.0, key={"tunable": "a"}), "damaged"),
        (choice(Size(64), CONFIG), None),
        (choice(Size(64), CONFIG, time_us="fast"), "damaged"),
        ({**choice(Size(64), CONFIG), "config": [1]}, "damaged"),
        ({"v": 1, "kind": "call"}, "damaged"),
        ({"v": 1, "kind": "call", "call": {}, "count": 3}, None),
        (choice(Size(64), CONFIG, tied=None), "damaged"),
        ({**choice(Size(64), CONFIG), "generation": "2"}, "damaged"),
        (choice(Size(64), CONFIG, default_us=10**400), "damaged"),
        (time(Size(64), CONFIG, 1.0, rung=None), "damaged"),
        (time(Size(64), CONFIG, 1.0, reason=7), "damaged"),
        (time(Size(64), CONFIG, 1.0, samples="x"), "damaged"),
        (time(Size(64), CONFIG, 1.0, kind="plan", rank=None), "damaged"),
        (time(Size(64), CONFIG, 1.0, kind="plan", rank=3), None),
    ],
)
def test_what_is_wrong_with_a_row(row: Any, fault: str | None) -> None:
    assert fault_of(row) == fault


def test_lines_that_no_reader_expects_are_ignored(tmp_path: Path) -> None:
    good = time(Size(64), CONFIG, 1.0)
    (tmp_path / "deep.jsonl").write_text("[" * 200_000 + "\n" + text_of(good) + "\n")
    with pytest.warns(UserWarning, match="not rows"):
        assert Store(tmp_path).rows() == [good]


def test_a_reader_finds_rows_that_are_compacted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its list of the files and its reading of them another process makes one of them."""
    for i in range(2):
        store = Store(tmp_path)
        store.append(time(Size(64), CONFIG, 1.0 + i))
        store.close()
    reader, listed = Store(tmp_path), Store._paths
    compactions = iter([True])

    def late(self: Store) -> list[Path]:
        paths = listed(self)
        if self is reader and next(compactions, False):
            assert Store(tmp_path).compact() == (2, 2)
        return paths

    monkeypatch.setattr(Store, "_paths", late)
    assert sorted(row["time_us"] for row in reader.rows()) == [1.0, 2.0]


def test_a_writer_whose_file_was_deleted_begins_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(time(Size(64), CONFIG, 1.0))
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    store.append(time(Size(64), CONFIG, 2.0))
    assert [row["time_us"] for row in Store(tmp_path).rows()] == [2.0]


def test_clearing_deletes_what_is_ours_and_free(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "uv.lock").write_text("theirs")
    code = """
        import sys, time
        from pathlib import Path
        from tilesmith.autotune.store import Store
        from tests.tuning import Size, time as row
        store = Store(Path(sys.argv[1]))
        store.append(row(Size(64), {"BLOCK": 32, "WARPS": 4}, 7.0))
        print("written", flush=True)
        time.sleep(60)
        """
    alive = python(code, str(tmp_path))
    assert alive.stdout is not None
    assert alive.stdout.readline() == "written\n"
    store = Store(tmp_path)
    store.append(time(Size(64), CONFIG, 1.0))
    with pytest.warns(UserWarning, match="not rows"):
        assert store.clear() == 1
    assert [row["time_us"] for row in store.rows()] == [7.0]
    assert {p.name for p in tmp_path.iterdir()} >= {"data.jsonl", "uv.lock"}
    alive.kill()
    alive.wait()


def test_several_rows_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finalists, which were timed in turns, are all kept or none."""
    store = Store(tmp_path)
    written: list[bytes] = []
    write = os.write

    def note(file: int, data: bytes) -> int:
        written.append(data)
        return write(file, data)

    monkeypatch.setattr(store_module.os, "write", note)
    store.append(*(time(Size(64), CONFIG, 1.0 + i) for i in range(3)))
    assert [data.count(b"\n") for data in written] == [3]


def test_without_a_home_the_cache_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TILESMITH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(store_module.os.path, "expanduser", lambda path: path)
    assert cache_directory() == Path(store_module.tempfile.gettempdir()) / "tilesmith"


def test_a_directory_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    """What is measured then lives as long as the process."""
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="cannot be written to"):
        store.append(time(Size(64), CONFIG, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.append(time(Size(64), CONFIG, 2.0))
        store.append(time(Size(64), CONFIG, 3.0))
    assert len(store.rows()) == 3


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_file_that_cannot_be_opened_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(".jsonl") and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(store_module.os, "open", refuse)
    store = Store(tmp_path)
    with pytest.warns(UserWarning, match=os.strerror(code)):
        store.append(time(Size(64), CONFIG, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.append(time(Size(64), CONFIG, 2.0))
    assert len(store.rows()) == 2


def test_a_disk_that_fills_up_tears_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.append(time(Size(64), CONFIG, 1.0))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "write", lambda file, data: write(file, data[:40]))
        with pytest.warns(UserWarning, match="could be written"):
            store.append(time(Size(64), CONFIG, 2.0))
    store.append(time(Size(64), CONFIG, 3.0))
    assert [row["time_us"] for row in store.rows()] == [1.0, 2.0, 3.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row["time_us"] for row in Store(tmp_path).rows()] == [1.0]


def test_a_table_is_read_only(tmp_path: Path) -> None:
    file = tmp_path / "table.jsonl"
    file.write_text(text_of(choice(Size(64), CONFIG)) + "\n")
    store = Store(file)
    assert len(store.rows()) == 1
    with pytest.raises(OSError, match="only read"):
        store.append(choice(Size(64), CONFIG))


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(text_of(time(Size(64), CONFIG, 1.0)) + "\n")
    store = Store(tmp_path)
    assert [row["time_us"] for row in store.rows()] == [1.0]
    draft = tmp_path / "draft"
    draft.write_text("".join(text_of(time(Size(64), CONFIG, t)) + "\n" for t in (5.0, 6.0)))
    draft.replace(file)
    assert [row["time_us"] for row in store.rows()] == [5.0, 6.0]
    file.unlink()
    assert store.rows() == []


def test_the_last_choice_counts_whatever_clocks_say() -> None:
    """A row written with a clock that was years ahead does not shadow what was found out later."""
    ahead = choice(Size(64), {"BLOCK": 64, "WARPS": 1}, generation=1, written="2101-01-01T00:00:00+00:00")
    later = choice(Size(64), CONFIG, generation=2, written="1970-01-01T00:00:00+00:00")
    for rows in ([ahead, later], [later, ahead]):
        (row,) = latest_choices(rows)
        assert row["config"] == CONFIG


def test_keys_survive_a_file() -> None:
    place = filed(PRETENDED, Size(64, 32))
    row = json.loads(text_of(choice(Size(64, 32), CONFIG)))
    assert filed_of(row) == place


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILESMITH_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("TILESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "tilesmith"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "tilesmith"


def test_a_fork_writes_its_own_journal(tmp_path: Path) -> None:
    store = in_directory(tmp_path).cache
    store.append(time(Size(64), CONFIG, 1.0))
    child = os.fork()
    if child == 0:
        store.append(time(Size(64), CONFIG, 2.0))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.append(time(Size(64), CONFIG, 3.0))
    assert sorted(row["time_us"] for row in store.rows()) == [1.0, 2.0, 3.0]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
