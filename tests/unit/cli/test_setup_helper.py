"""``banger setup helper``: what it would install, and what it says where it cannot."""

import configparser
import os

import pytest
from click.testing import CliRunner

from banger.cli.commands import setup_helper
from banger.cli.commands.setup_helper import NAMES, helper, units
from banger.host.config import Config
from banger.model.errors import HostLacksError


@pytest.fixture
def program(tmp_path, monkeypatch):
    path = tmp_path / "bin" / "banger-helper"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(path.with_name("banger"))])
    return path


def parsed(text):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    return unit


def test_the_units_fit_the_configuration_and_this_banger(program):
    texts = units()
    socket, service = (parsed(texts[name]) for name in NAMES)
    default = Config.__dataclass_fields__["helper_socket"].default
    assert socket["Socket"]["ListenSequentialPacket"] == str(default)
    assert (socket["Socket"]["SocketMode"], socket["Socket"]["SocketGroup"]) == ("0660", "banger")
    assert service["Service"]["ExecStart"] == str(program)
    state = Config.__dataclass_fields__["helper_state_dir"].default
    assert f"/var/lib/{service['Service']['StateDirectory']}" == str(state)


def test_the_service_has_no_more_power_than_it_needs(program):
    service = parsed(units()[NAMES[1]])["Service"]
    assert set(service["CapabilityBoundingSet"].split()) == {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"}  # fmt: skip
    for key in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "RestrictNamespaces", "RestrictSUIDSGID", "ProtectKernelModules"):  # fmt: skip
        assert service[key] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_an_ordinary_user_is_told_to_be_root(program, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(helper, [])
    assert isinstance(result.exception, HostLacksError)
    assert result.exception.hint == "sudo banger setup helper"


def test_root_gets_group_and_units_and_can_take_the_units_back(program, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup_helper, "UNITS", tmp_path)
    monkeypatch.setattr(setup_helper, "has_systemd", lambda: True)
    monkeypatch.setattr("banger.host.exec.run_sync", lambda argv, **_: called.append(argv))
    monkeypatch.setenv("SUDO_USER", "somebody")
    done = CliRunner().invoke(helper, [])
    assert done.exit_code == 0, done.output
    assert called == [
        ["groupadd", "--system", "--force", "banger"],
        ["usermod", "--append", "--groups", "banger", "somebody"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", "banger-helper.socket"],
        ["systemctl", "try-restart", "banger-helper.service"],
    ]
    assert (tmp_path / NAMES[1]).read_text() == units()[NAMES[1]]
    assert CliRunner().invoke(helper, ["--remove"]).exit_code == 0
    assert not any((tmp_path / name).exists() for name in NAMES)


def test_storage_is_given_to_it_on_demand_and_taken_from_it_again(program, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup_helper, "UNITS", tmp_path)
    monkeypatch.setattr(setup_helper, "has_systemd", lambda: True)
    monkeypatch.setattr("banger.host.exec.run_sync", lambda argv, **_: None)
    more = tmp_path / setup_helper.STORAGE
    assert CliRunner().invoke(helper, ["--storage"]).exit_code == 0
    assert "DeviceAllow=block-device-mapper" in more.read_text()
    assert "CAP_SYS_ADMIN" not in (tmp_path / NAMES[1]).read_text()
    assert CliRunner().invoke(helper, ["--user", "another"]).exit_code == 0
    assert more.exists()
    assert CliRunner().invoke(helper, ["--no-storage"]).exit_code == 0
    assert not more.parent.exists()
    CliRunner().invoke(helper, ["--storage"])
    (more.parent / "own.conf").write_text("[Service]\n")  # the administrator's
    assert CliRunner().invoke(helper, ["--remove"]).exit_code == 0
    assert [path.name for path in more.parent.iterdir()] == ["own.conf"]
    assert "storage.conf" in CliRunner().invoke(helper, ["--print", "--storage"]).output
    assert "storage.conf" not in CliRunner().invoke(helper, ["--print", "--no-storage"]).output


def test_without_systemd_it_says_how_to_start_it(program, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup_helper, "UNITS", tmp_path)
    monkeypatch.setattr(setup_helper, "has_systemd", lambda: False)
    monkeypatch.setattr("banger.host.exec.run_sync", lambda argv, **_: None)
    done = CliRunner().invoke(helper, [])
    assert f"sudo {program}" in done.output
    assert not (tmp_path / NAMES[0]).exists()


def test_a_program_that_others_can_change_is_warned_of(program, tmp_path, monkeypatch):
    program.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup_helper, "has_systemd", lambda: False)
    monkeypatch.setattr("banger.host.exec.run_sync", lambda argv, **_: None)
    done = CliRunner().invoke(helper, ["--user", "me"])
    assert "can become root" in done.output
