"""The ledger of a root process: one file, whole or as it was."""

import pytest

from banger.host import fs, ledger
from banger.host.ledger import Ledger
from banger.model.errors import BangerError


def test_what_is_written_is_read_by_the_next(tmp_path):
    path = tmp_path / "ledger.json"
    first = Ledger(path)
    row = first.intend("uplink", "3", 1000, inode=7)
    first.done(row, guests="10.115.4.0/22")
    first.intend("forwarding", "3", 0)
    again = Ledger(path)
    assert again.token == first.token
    (found,) = again.rows("uplink")
    assert (found.key, found.uid, found.done, found.facts) == ("3", 1000, True, {"inode": 7, "guests": "10.115.4.0/22"})  # fmt: skip
    assert found.this_boot
    again.strike(found)
    again.strike(found)
    assert Ledger(path).rows("uplink") == []
    assert len(Ledger(path).rows("forwarding")) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_intent_takes_the_place_of_an_earlier_one(tmp_path):
    made = Ledger(tmp_path / "ledger.json")
    made.done(made.intend("uplink", "3", 1))
    made.intend("uplink", "3", 2)
    (row,) = made.rows("uplink")
    assert (row.uid, row.done) == (2, False)


def test_a_disk_that_is_full_changes_neither_file_nor_memory(tmp_path, monkeypatch):
    made = Ledger(tmp_path / "ledger.json")
    made.intend("uplink", "3", 1)

    def full(*_arguments, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fs, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        made.intend("uplink", "4", 1)
    assert [row.key for row in made.rows("uplink")] == ["3"]
    monkeypatch.undo()
    assert [row.key for row in Ledger(tmp_path / "ledger.json").rows("uplink")] == ["3"]


def test_rows_of_another_boot_are_known(tmp_path, monkeypatch):
    made = Ledger(tmp_path / "ledger.json")
    made.intend("uplink", "3", 1)
    monkeypatch.setattr(ledger, "boot_id", lambda: "another")
    assert not Ledger(tmp_path / "ledger.json").rows("uplink")[0].this_boot


@pytest.mark.parametrize("text", ["", "{", '{"token": 3, "rows": []}', '{"token": "x", "rows": [], "more": 1}'])  # fmt: skip
def test_a_damaged_ledger_is_said_and_kept(tmp_path, text):
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(BangerError, match="damaged") as caught:
        Ledger(path)
    assert f"mv {path}" in caught.value.hint
    assert path.read_text() == text
