"""The configuration: where it comes from, what it refuses, what it hands to the daemon."""

import os
import pwd
from dataclasses import fields

import pytest

from banger.host import paths
from banger.host.config import KEYS, Config, load_config
from banger.model.errors import InvalidInputError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The environment of an ordinary user whose home is ``tmp_path``."""
    monkeypatch.setattr(paths, "is_root", lambda: False)
    return {"HOME": str(tmp_path)}


def write(home, text):
    path = paths.config_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_file_every_key_has_its_documented_default(home, tmp_path):
    config = load_config({**home, "XDG_RUNTIME_DIR": "/run/user/1"})
    assert config.values() == {
        "state_dir": f"{tmp_path}/.local/state/banger", "runtime_dir": "/run/user/1/banger", "log_level": "info",
        "default_image": "debian", "vcpus": 2, "memory": "2G", "disk_size": None, "work_size": "16G", "vmm": "auto",
        "network": "auto", "uplink": "slirp4netns", "dns_port": 0, "tap_pool_size": 4, "qemu_path": None, "firecracker_path": None, "jailer_path": None,
        "bundle_dir": None, "bundle_manifest": None, "accel": "auto", "confine": "auto", "storage": "auto", "ready_timeout_s": 300.0, "reconcile_s": 60.0, "drain_s": 10.0,
        "max_parallel_boots": 0, "mirror": None, "void_mirror": None, "console_log_max_bytes": 1 << 20, "agent_path": None,
        "helper_socket": "/run/banger-helper/helper.sock", "helper_state_dir": "/var/lib/banger-helper", "bridge_prefix": "10.115.0.0/16",
        "forward_env": None, "ssh_reminder": True,
    }  # fmt: skip
    assert str(config.socket_path) == "/run/user/1/banger/bangerd.sock"
    assert config.images_dir == config.state_dir / "images"


def test_the_table_of_keys_and_the_class_agree():
    assert list(KEYS) == [field.name for field in fields(Config)][: len(KEYS)]


def test_root_uses_the_systems_directories(monkeypatch):
    monkeypatch.setattr(paths, "is_root", lambda: True)
    environ = {"HOME": "/root", "XDG_STATE_HOME": "/x", "XDG_RUNTIME_DIR": "/y"}
    config = load_config({**environ, "BANGER_CONFIG": "/nonexistent/config.toml"})
    assert (str(config.state_dir), str(config.runtime_dir)) == ("/var/lib/banger", "/run/banger")
    assert str(paths.config_path(environ)) == "/etc/banger/config.toml"


def test_xdg_directories_are_honoured_and_relative_ones_ignored(home, tmp_path):
    environ = {**home, "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}
    assert str(paths.config_path(environ)) == "/c/banger/config.toml"
    assert str(load_config(environ).state_dir) == "/s/banger"
    assert (
        load_config({**home, "XDG_STATE_HOME": "rel"}).state_dir == tmp_path / ".local/state/banger"
    )


def test_without_a_session_the_runtime_directory_is_run_user_or_lies_in_the_state_directory(
    home, tmp_path, monkeypatch
):
    login = f"/run/user/{os.getuid()}"
    config = load_config(home)
    try:
        ours = os.stat(login).st_uid == os.getuid()
    except FileNotFoundError:
        ours = False
    wanted = f"{login}/banger" if ours else f"{tmp_path}/.local/state/banger/run"
    assert str(config.runtime_dir) == wanted
    monkeypatch.setattr(os, "getuid", lambda: pwd.getpwnam("nobody").pw_uid)  # has no login session
    assert load_config(home).runtime_dir == tmp_path / ".local/state/banger/run"


def test_the_environment_wins_over_the_file_and_each_value_knows_its_source(home):
    path = write(home, 'memory = "4G"\nvcpus = 3\naccel = "tcg"\n')
    config = load_config({**home, "BANGER_VCPUS": "5", "BANGER_WORK_SIZE": ""})
    assert (config.memory, config.vcpus, config.accel, config.work_size) == ("4G", 5, "tcg", "16G")
    assert config.sources == {"memory": str(path), "vcpus": "BANGER_VCPUS", "accel": str(path)}


def test_every_key_has_an_environment_form(home):
    given = {
        "state_dir": "/s", "runtime_dir": "/r", "log_level": "debug", "default_image": "void", "vcpus": "1",
        "memory": "1G", "disk_size": "9G", "work_size": "1G", "vmm": "qemu", "network": "none", "uplink": "pasta", "dns_port": "5354", "tap_pool_size": "16",
        "qemu_path": "/q", "firecracker_path": "/f", "jailer_path": "/j", "bundle_dir": "/b", "bundle_manifest": "/m", "accel": "kvm", "confine": "off", "storage": "copy", "ready_timeout_s": "7.5", "reconcile_s": "0.0", "drain_s": "2.5", "max_parallel_boots": "4", "mirror": "file:///m", "void_mirror": "http://void.test",
        "console_log_max_bytes": "2M", "agent_path": "/a",
        "helper_socket": "/h/s", "helper_state_dir": "/h/t", "bridge_prefix": "172.29.0.0/16",
        "forward_env": "A,B", "ssh_reminder": "False",
    }  # fmt: skip
    assert set(given) == set(KEYS)
    config = load_config({**home, **{f"BANGER_{k.upper()}": v for k, v in given.items()}})
    as_text = {key: str(value) for key, value in config.values().items()}
    assert as_text == {**given, "console_log_max_bytes": str(2 << 20)}


def test_the_environment_for_a_daemon_gives_the_same_configuration(home):
    path = write(
        home, 'memory = "4G"\nready_timeout_s = 5\nreconcile_s = 0\nmirror = "file:///m"\n'
    )
    config = load_config({**home, "BANGER_VCPUS": "5"})
    again = load_config(config.environment())
    assert again.values() == config.values()
    assert again.path == path


@pytest.mark.parametrize("word", ["off", "NO", "0", "false"])
def test_a_switch_is_turned_off_in_the_words_that_people_use(home, word):
    assert load_config({**home, "BANGER_SSH_REMINDER": word}).ssh_reminder is False
    write(home, "ssh_reminder = false\n")
    assert load_config(home).ssh_reminder is False
    assert load_config(load_config(home).environment()).ssh_reminder is False


def test_names_that_go_into_guests_are_a_list_in_the_file(home):
    write(home, 'forward_env = ["A", "B", "A"]\n')
    assert load_config(home).forward_env == ("A", "B")
    assert load_config(load_config(home).environment()).forward_env == ("A", "B")
    write(home, "forward_env = [1]\n")
    with pytest.raises(InvalidInputError, match="is not allowed"):
        load_config(home)


def test_an_unknown_key_names_the_nearest_and_the_file(home):
    path = write(home, 'memroy = "4G"\n')
    with pytest.raises(InvalidInputError) as caught:
        load_config(home)
    assert "memroy" in caught.value.what
    assert str(path) in caught.value.what
    assert "memory" in caught.value.hint


def test_a_renamed_key_is_read_with_one_warning(home):
    path = write(home, 'ping_helper_path = "/opt/agent"\n')
    said = []
    config = load_config(home, warn=said.append)
    assert str(config.agent_path) == "/opt/agent"
    assert said == [f"{path}: ping_helper_path is called agent_path now"]
    said.clear()
    again = load_config({"BANGER_PING_HELPER_PATH": "/b", **home}, warn=said.append)
    assert str(again.agent_path) == "/b"
    assert any("BANGER_AGENT_PATH" in sentence for sentence in said)


def test_the_new_name_wins_over_the_old_one(home):
    write(home, 'ping_helper_path = "/old"\nagent_path = "/new"\n')
    assert str(load_config(home, warn=lambda _: None).agent_path) == "/new"


def test_warnings_go_to_stderr(home, capsys):
    write(home, 'ping_helper_path = "/opt/agent"\n')
    load_config(home)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("warning: ") == 1


@pytest.mark.parametrize(
    "line",
    [
        'memory = "lots"', 'ssh_reminder = "maybe"', "ssh_reminder = 2", "memory = true", "memory = []", 'log_level = "loud"', "vcpus = -1", 'vcpus = "x"', "vcpus = 1.5",
        "vcpus = true", 'state_dir = "relative"', 'state_dir = ""', "state_dir = 5", "ready_timeout_s = 0",
        "ready_timeout_s = nan", 'ready_timeout_s = "soon"', "ready_timeout_s = -1", 'vmm = "xen"', 'network = ["user"]', 'accel = ""', 'confine = "on"',
        'qemu_path = "qemu"', 'mirror = ""', "[memory]", 'runtime_dir = "/a\\u0000b"',
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_and_names_key_and_file(home, line):
    path = write(home, line + "\n")
    with pytest.raises(InvalidInputError) as caught:
        load_config(home)
    assert str(path) in caught.value.what
    assert line.strip("[]").split(" =")[0] in caught.value.what


def test_a_file_that_is_not_toml_or_not_readable_is_an_error(home):
    path = write(home, "memory = = 1\n")
    with pytest.raises(InvalidInputError, match="is not TOML"):
        load_config(home)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="is not TOML"):
        load_config(home)
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_config(home)


def test_numbers_and_sizes_may_be_written_as_integers(home):
    write(home, "memory = 2147483648\nconsole_log_max_bytes = 4096\n")
    config = load_config(home)
    assert (config.memory, config.console_log_max_bytes) == ("2147483648", 4096)


def test_a_socket_path_that_the_kernel_cannot_bind_names_the_way_out(home):
    config = load_config({**home, "BANGER_RUNTIME_DIR": "/" + "r" * 93})
    assert len(str(config.socket_path)) == 107
    long = load_config({**home, "BANGER_RUNTIME_DIR": "/" + "r" * 94})
    with pytest.raises(InvalidInputError) as caught:
        _ = long.socket_path
    assert "BANGER_RUNTIME_DIR" in caught.value.hint
