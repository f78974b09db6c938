"""``banger df`` and ``banger prune`` as programs, against a daemon over a real socket."""

import json
from types import SimpleNamespace

import pytest

from banger.api import schema
from banger.cli.commands import disk
from banger.model.errors import BangerError, HostLacksError
from tests.framework.fake_daemon import FakeDaemon
from tests.framework.terminal import Terminal
from tests.unit.cli.test_commands import ARGV, Shell


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    shell.env["BANGER_BUNDLE_DIR"] = str(tmp_path / "bundle")
    return shell


@pytest.fixture
def daemon(tmp_path):
    with FakeDaemon(tmp_path) as daemon:
        daemon.leftovers = [
            schema.Leftover("build", ".build-1", "/state/images/.build-1", 200 << 20),
            schema.Leftover("image", "old", "/state/images/e", 300 << 20),
            schema.Leftover("database", "banger.db.corrupt-1", "/state/banger.db.corrupt-1", 4096),
        ]
        yield daemon


@pytest.fixture
def download(tmp_path):
    part = tmp_path / "bundle" / "download" / f"{'a' * 64}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 8192)
    part.with_name(f"{part.name}.etag").write_text("x")
    return part


def test_df_is_a_table_of_images_then_vms_with_the_sum_and_what_is_free(daemon, shell):
    head, *lines = shell.ok("df").stdout.splitlines()
    assert head.split() == ["KIND", "NAME", "STORAGE", "OWN", "SHARED", "ON", "DISK", "SIZE"]
    assert [line.split() for line in lines[:3]] == [
        ["image", "debian", "-", "295M", "5M", "300M", "8G"],
        ["vm", "web", "reflink", "4M", "5M", "9M", "24G"],
        ["other", "banger.db", "-", "?", "?", "4K", "4K"],
    ]
    assert lines[-2:] == [
        "together at most 304M, shared blocks counted once",
        "/state: 40G of 100G are free",
    ]


def test_df_is_the_apis_object_or_names_for_scripts(daemon, shell):
    usage = json.loads(shell.ok("df", "--format", "json").stdout)
    assert usage["used_bytes"] == 304 << 20
    assert usage["items"][0]["own_bytes"] == 4 << 20
    assert shell.ok("df", "--format", "name").stdout == "web\ndebian\nbanger.db\n"


def test_a_dry_run_removes_nothing(daemon, shell, download):
    done = shell.ok("prune", "--dry-run", "--images")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["KIND", "build", "image", "download"]  # fmt: skip
    assert "500M would be freed" in done.stderr
    assert [wish.dry_run for wish in daemon.wishes] == [True]
    assert download.exists()


def test_prune_removes_what_was_not_asked_to_be_kept_and_says_how_much(daemon, shell, download):
    done = shell.ok("prune", "--yes", "--format", "json")
    items = json.loads(done.stdout)
    assert [(item["kind"], item["removed"]) for item in items] == [
        ("build", True),
        ("download", True),
    ]
    assert "200M freed" in done.stderr
    assert not download.parent.exists()
    assert [item.kind for item in daemon.leftovers] == ["image", "database"]


def test_options_ask_for_more(daemon, shell):
    shell.ok("prune", "--yes", "--images", "--databases")
    assert daemon.leftovers == []


def test_where_nobody_can_be_asked_it_wants_yes(daemon, shell):
    done = shell("prune")
    assert done.returncode == 2
    assert "hint: banger prune --yes" in done.stderr
    assert [wish.dry_run for wish in daemon.wishes] == [True]


@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("y", 2)])
def test_on_a_terminal_it_asks(daemon, shell, answer, left):
    with Terminal([*ARGV, "prune"], env=shell.env) as screen:
        screen.wait_for("remove 1 thing, 200M?")
        screen.type(f"{answer}\r")
        status = screen.process.wait(20)
    assert (status, len(daemon.leftovers)) == (0 if answer == "y" else 130, left)


def test_nothing_to_remove_is_said_and_fine(daemon, shell):
    daemon.leftovers = []
    done = shell.ok("prune")
    assert (done.stdout, done.stderr) == ("", "there is nothing to remove\n")


def test_what_could_not_be_removed_is_an_error_after_the_rest(daemon, shell):
    daemon.fail_at[".build-1"] = HostLacksError("it stays", detail="read-only", hint="mount")
    done = shell("prune", "--yes", "--databases")
    assert done.returncode == 1
    assert "error: it stays" in done.stderr
    assert "4K freed" in done.stderr


@pytest.mark.parametrize("answer", [b"{}", b"[1]", b"<html>"])
def test_an_answer_of_another_form_is_told_as_one(answer):
    session = SimpleNamespace(transport=SimpleNamespace(call=lambda *_, **__: answer))
    with pytest.raises(BangerError, match="the daemon's answer was not understood"):
        disk._ask(session, {"dry_run": True})
