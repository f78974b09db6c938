"""The command line as a program: statuses, streams and formats, against a daemon over a real socket."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from banger.api import schema
from banger.model.errors import GuestNotReadyError, HostLacksError
from tests.framework.fake_daemon import FakeDaemon, a_vm
from tests.framework.stages import CREATE_STAGES

ARGV = [sys.executable, "-m", "banger.cli.main"]


class Shell:
    """Runs banger with a home, a state and a runtime directory of its own."""

    def __init__(self, directory):
        self.home = directory
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("BANGER_", "XDG_"))},
            "HOME": str(directory),
            "BANGER_CONFIG": str(directory / "config.toml"),
            "BANGER_STATE_DIR": str(directory / "state"),
            "BANGER_RUNTIME_DIR": str(directory),
            "BANGER_NO_AUTOSTART": "1",
        }

    def __call__(self, *argv, stdin=None, env=None):
        return subprocess.run(
            [*ARGV, *argv], env={**self.env, **(env or {})}, input=stdin, capture_output=True, text=True, timeout=30, check=False,
            **({} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip

    def ok(self, *argv, **more):
        done = self(*argv, **more)
        assert done.returncode == 0, done.stderr
        return done

    def fails(self, status, *argv, **more):
        """A failure as the contract has it: nothing on stdout, what and hint on stderr, no traceback."""
        done = self(*argv, **more)
        assert done.returncode == status, done.stderr
        assert done.stdout == ""
        assert re.search(r"^error: \S", done.stderr, re.MULTILINE)
        assert re.search(r"\n\nhint: \S", done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def daemon(daemon):
    daemon.vms.append(a_vm("off", "stopped"))
    return daemon


def test_list_is_a_table_json_or_names(daemon, shell):
    table = shell.ok("vm", "list").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "READY"]
    assert [line.split()[0] for line in table[1:]] == ["web", "off"]
    listed = json.loads(shell.ok("vm", "list", "--format", "json").stdout)
    assert [vm["name"] for vm in listed] == ["web", "off"]
    assert shell.ok("vm", "list", "--format", "name").stdout == "web\noff\n"


@pytest.mark.parametrize("alias", ["ls", "ps", "vm ls"])
def test_aliases_list(daemon, shell, alias):
    assert shell.ok(*alias.split(), "--format", "name").stdout == "web\noff\n"


def test_every_noun_with_a_list_or_a_delete_has_their_aliases(daemon, shell):
    assert shell.ok("image", "ls", "--format", "name").stdout == "debian\n"
    shell.ok("vm", "rm", "web")
    assert shell.ok("op", "ls", "--format", "name").stdout == f"{daemon.operations[0].id}\n"
    shell.ok("image", "rm", "debian")
    assert daemon.images == []
    shell.fails(2, "op", "rm", "x")


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("config path", "path"),
        ("setup ssh --print", "ssh_config"),
        ("image delete debian", "id"),
        ("vm logs web -n 1", "line"),
        ("daemon logs -n 1", "message"),
    ],
)
def test_every_command_that_prints_data_prints_it_as_json_too(daemon, shell, command, key):
    log = shell.home / "state" / "bangerd.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(
        '{"time": "2026-01-01T00:00:00.000Z", "level": "info", "logger": "x", "message": "hello"}\n'
    )
    found = json.loads(shell.ok(*command.split(), "--format", "json").stdout)
    assert found[key]


def test_a_log_as_json_has_a_line_an_object(daemon, shell):
    lines = shell.ok("vm", "logs", "web", "--format", "json").stdout.splitlines()
    assert [json.loads(line)["line"] for line in lines] == [f"line {n}" for n in range(200)]


def test_the_path_of_a_configuration_that_is_wrong_can_still_be_asked_for(shell):
    (shell.home / "config.toml").write_text("colour = 5\n")
    assert "unknown key" in shell.fails(2, "config", "show")
    assert shell.ok("config", "path").stdout == f"{shell.home}/config.toml\n"


@pytest.mark.parametrize("wait", ["booted", "agent", "services", None])
def test_how_far_a_start_is_waited_for_is_asked_of_the_daemon(daemon, shell, wait):
    option = [] if wait is None else ["--wait", wait]
    shell.ok("vm", "create", "--name", "new", *option)
    shell.ok("vm", "start", "off", *option)
    shell.ok("vm", "restart", "web", *option)
    assert [wish.wait for wish in daemon.wishes] == [wait or "services"] * 3
    assert shell("vm", "create", "--wait", "for-me").returncode == 2


def test_run_waits_for_ssh_at_least(daemon, shell):
    assert "waits for the agent at least" in shell("run", "--wait", "booted", "--", "true").stderr
    assert daemon.wishes == []


def test_a_dry_run_prints_the_steps_and_begins_nothing(daemon, shell):
    lines = shell.ok("vm", "create", "--name", "new", "--dry-run").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["STAGE", "disks", "boot"]
    steps = json.loads(shell.ok("vm", "start", "off", "--dry-run", "--format", "json").stdout)
    assert steps[0] == {"stage": "disks", "what": "make disks", "effects": ["disks"]}
    assert "nothing is to be done" in shell.ok("vm", "start", "web", "--dry-run").stderr
    assert daemon.operations == []


def test_an_empty_list_says_what_to_do_on_stderr_only(daemon, shell):
    daemon.vms.clear()
    done = shell.ok("vm", "list")
    assert done.stdout == ""
    assert "banger run" in done.stderr
    assert shell.ok("vm", "list", "--format", "json").stdout.strip() == "[]"


def test_create_prints_the_stages_with_times_on_stderr_and_the_vm_on_stdout(daemon, shell):
    done = shell.ok("vm", "create", "--name", "new", "--format", "json")
    assert json.loads(done.stdout)["name"] == "new"
    lines = [line.split() for line in done.stderr.splitlines()]
    assert [words[0] for words in lines] == CREATE_STAGES
    assert all(words[2:4] == ["12", "ms"] for words in lines)
    assert "\x1b" not in done.stderr


def test_the_wish_reaches_the_daemon_whole(daemon, shell):
    shell.ok(
        "vm", "create", "--name", "new", "--vcpus", "3", "--memory", "1.5G", "--work-size", "2G",
        "--network", "none", "--no-nat", "--forward", "8080:80", "--no-start",
    )  # fmt: skip
    spec = daemon.vm("new").spec
    assert (spec.vcpus, spec.memory_mib, spec.work_bytes) == (3, 1536, 2 << 30)
    assert (spec.network, spec.nat) == ("none", False)
    assert spec.forwards == [schema.Forward(8080, 80)]
    assert daemon.vm("new").state == "stopped"


def test_defaults_come_from_the_configuration(daemon, shell):
    (shell.home / "config.toml").write_text('memory = "3G"\nvcpus = 5\n')
    shell.ok("vm", "create", "--name", "new", "--no-start")
    assert (daemon.vm("new").spec.memory_mib, daemon.vm("new").spec.vcpus) == (3072, 5)


def test_no_wait_prints_the_operations_id(daemon, shell):
    done = shell.ok("vm", "create", "--name", "new", "--no-wait")
    assert done.stdout.strip() in {operation.id for operation in daemon.operations}
    shell.ok("op", "wait", done.stdout.strip())
    assert daemon.vm("new").state == "running"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HostLacksError("no qemu", hint="install it"), 5),
        (GuestNotReadyError("too slow", detail="the console's tail", hint="wait"), 6),
    ],
)
def test_a_failed_stage_is_the_commands_failure(daemon, shell, error, status):
    daemon.fail_at["vmm"] = error
    said = shell.fails(status, "vm", "create", "--name", "new")
    assert "vmm" in said
    assert "failed" in said
    assert said.endswith(f"\nhint: {error.hint}\n")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["vm", "show", "nobody"], 3),
        (["vm", "start", "web"], 4),
        (["vm", "set", "web", "--vcpus", "2"], 4),
        (["vm", "create", "--name", "web"], 4),
        (["vm", "create", "--name", "../x"], 2),
        (["vm", "create", "--memory", "banana"], 2),
        (["vm", "create", "--forward", "1:2:3"], 2),
        (["vm", "create", "--vcpus", "0"], 2),
        (["vm", "set", "off"], 2),
        (["vm", "forward", "nobody"], 3),
        (["vm", "forward", "web", "8080:80/sctp"], 2),
        (["vm", "forward", "web", "1:2:3"], 2),
        (["vm", "forward", "web", "0"], 2),
        (["vm", "forward", "web", "65536:80"], 2),
        (["vm", "forward", "web", "--remove", "8080:80"], 2),
        (["vm", "forward", "web", "--remove", "9"], 3),
        (["vm", "lst"], 2),
        (["vm", "list", "--format", "xml"], 2),
        (["image", "show", "plan9"], 3),
        (["image", "register", "--name", "No Name", "--from", "debian"], 2),
        (["image", "register", "--name", "mine", "--from", "plan9"], 3),
        (["image", "register", "--name", "mine", "--rootfs", "/no/such/file"], 3),
        (["image", "register", "--name", "debian", "--from", "debian"], 4),
        (["image", "register", "--name", "mine", "--service", "web"], 2),
        (["image", "promote", "off"], 2),
        (["image", "promote", "off", "--name", "No Name"], 2),
        (["image", "promote", "nonesuch", "--name", "mine"], 3),
        (["image", "promote", "web", "--name", "mine"], 4),
        (["image", "promote", "off", "--name", "debian"], 4),
        (["op", "show", "zzz"], 3),
        (["vm", "exec", "off", "--", "true"], 4),
        (["vm", "ssh", "off"], 4),
        (["vm", "cp", "a", "b"], 2),
    ],
)
def test_errors_have_a_status_a_sentence_and_no_traceback(daemon, shell, argv, status):
    shell.fails(status, *argv)


def test_an_unknown_command_names_the_nearest(shell):
    assert "did you mean 'list'" in shell.fails(2, "vm", "lst")


def test_a_name_in_the_wrong_place_is_shown_its_right_one(shell):
    assert "to name the VM: --name web" in shell.fails(2, "vm", "create", "web")


def test_without_a_daemon_the_status_is_7(shell):
    assert "hint: bangerd" in shell.fails(7, "vm", "list")


def test_a_wrong_configuration_names_the_nearest_key(shell):
    (shell.home / "config.toml").write_text('memroy = "4G"\n')
    assert "memory" in shell.fails(2, "vm", "list")


def test_several_vms_are_worked_on_though_one_fails(daemon, shell):
    done = shell("vm", "stop", "web", "nobody", "off")
    assert done.returncode == 3
    assert "nobody" in done.stderr
    assert daemon.vm("web").state == "stopped"


def test_delete_by_its_alias(daemon, shell):
    shell.ok("rm", "web")
    assert [vm.name for vm in daemon.vms] == ["off"]


def test_forwards_are_listed_added_and_removed(daemon, shell):
    done = shell.ok("vm", "forward", "web")
    assert done.stdout.splitlines()[1].split() == ["127.0.0.1:40000", "5353", "udp", "yes"]
    done = shell.ok("vm", "forward", "web", "8080:80", "53/udp", "--remove", "40000/udp")
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert rows == [["127.0.0.1:8080", "80", "tcp", "yes"], ["127.0.0.1:40001", "53", "udp", "yes"]]
    done = shell.ok("vm", "forward", "web", "--remove", "8080", "--format", "json")
    left = {"host_port": 40001, "guest_port": 53, "protocol": "udp", "open": True}
    assert json.loads(done.stdout) == [left]
    shell.ok("vm", "forward", "web", "--remove", "40001/udp")
    done = shell.ok("vm", "forward", "web")
    assert (done.stdout, done.stderr) == ("", "nothing leads into this VM\n")


def test_ports_of_the_host_are_completed_after_remove(daemon, shell):
    words = {"_BANGER_COMPLETE": "bash_complete", "COMP_CWORD": "5"}
    done = shell(env={**words, "COMP_WORDS": "banger vm forward web --remove 4"})
    assert done.stdout == "plain,40000/udp\n"


def test_what_resolved_must_read_is_printed_once_there_is_a_port(shell):
    assert "dns_port = 5354" in shell.fails(4, "setup", "dns", "--print")
    env = {"BANGER_DNS_PORT": "5354"}
    done = shell.ok("setup", "dns", "--print", env=env)
    assert (
        done.stdout
        == "# made by: banger setup dns\n[Resolve]\nDNS=127.0.0.1:5354\nDomains=~banger\n"
    )
    said = shell.fails(2, "setup", "dns", env=env)
    assert "/etc/systemd/resolved.conf.d/banger.conf" in said


def test_nat_is_set_and_left_alone_when_nothing_is_said(daemon, shell):
    shell.ok("vm", "set", "off", "--no-nat")
    assert daemon.vm("off").spec.nat is False
    shell.ok("vm", "set", "off", "--vcpus", "3")
    assert daemon.vm("off").spec.nat is False


def test_groups_are_set_replaced_and_left(daemon, shell):
    done = shell.ok("vm", "set", "off", "--group", "web", "--group", "db", "--group", "web")
    assert daemon.vm("off").spec.groups == ["web", "db"]
    assert "web, db" in done.stdout
    shell.ok("vm", "set", "off", "--vcpus", "3")
    assert daemon.vm("off").spec.groups == ["web", "db"]
    shell.ok("vm", "set", "off", "--no-groups")
    assert daemon.vm("off").spec.groups == []
    assert "exclude each other" in shell.fails(2, "vm", "set", "off", "--group", "a", "--no-groups")


def test_set_changes_and_prints(daemon, shell):
    done = shell.ok("vm", "set", "off", "--name", "on", "--memory", "1G", "--format", "json")
    assert json.loads(done.stdout)["spec"]["memory_mib"] == 1024
    assert daemon.vm("on").name == "on"


def test_exec_gives_streams_and_status(daemon, shell):
    done = shell("vm", "exec", "web", "--", "sh", "-c", "cat; echo oops >&2; exit 7", stdin="in")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "oops\n")
    assert shell("exec", "web", "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_cp_takes_trees_both_ways(daemon, shell, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("content")
    shell.ok("vm", "cp", str(tree), "web:/root/")
    assert (daemon.root / "root" / "tree" / "sub" / "file").read_text() == "content"
    shell.ok("vm", "cp", "web:/root/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "file").read_text() == "content"
    shell.fails(3, "vm", "cp", "web:/root/nothing", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_logs_health_stats_and_ports(daemon, shell):
    assert shell.ok("vm", "logs", "web").stdout.endswith("line 199\n")
    assert "yes" in shell.ok("vm", "health", "web").stdout
    assert json.loads(shell.ok("vm", "stats", "web", "--format", "json").stdout)["guest_load_1m"]
    assert re.search(r"tcp.*22.*2222", shell.ok("vm", "ports", "web").stdout)


def test_a_guest_that_is_not_ready_is_status_6(daemon, shell):
    daemon.health = schema.Health(False, False, "the agent did not answer")
    assert shell("vm", "health", "web").returncode == 6


def test_a_stopped_vm_becomes_an_image_that_says_where_it_is_from(daemon, shell):
    done = shell.ok("image", "promote", "off", "--name", "mine", "--with-work", "--clean-history")
    assert daemon.last_promotion == schema.ImagePromote("mine", with_work=True, clean_history=True)
    assert "parent" in done.stdout
    assert "promoted from image dddddddddddd (VM off)" in done.stdout
    shown = json.loads(shell.ok("image", "show", "mine", "--format", "json").stdout)
    assert shown["history"][0]["vm"] == "off"
    assert shell.ok("image", "promote", "off", "--name", "other", "--no-wait").stdout.strip()


def test_an_image_is_registered_from_files_wherever_the_daemon_runs(daemon, shell, tmp_path):
    for name in ("rootfs.img", "bzImage"):
        (tmp_path / name).write_bytes(b"x")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        done = shell.ok(
            "image", "register", "--name", "mine", "--from", "debian", "--rootfs", "rootfs.img", "--kernel", "./bzImage",
            "--modules", "none", "--cmdline", "rw quiet", "--service", "ssh:22", "--service", "web:80/health", "--format", "name",
        )  # fmt: skip
    finally:
        os.chdir(here)
    assert done.stdout == "mine\n"
    assert [line.split()[0] for line in done.stderr.splitlines()][:2] == ["validate", "kernel"]
    wish = daemon.last_registration
    assert (wish.base, wish.modules, wish.cmdline, wish.replace) == (
        "debian",
        "none",
        "rw quiet",
        False,
    )
    assert (wish.rootfs, wish.kernel) == (str(tmp_path / "rootfs.img"), str(tmp_path / "bzImage"))
    assert [(item.name, item.port, item.path) for item in wish.services] == [
        ("ssh", 22, ""),
        ("web", 80, "/health"),
    ]
    assert (wish.initramfs, wish.work_seed) == (None, None)


def test_a_registration_that_fails_says_why(daemon, shell):
    daemon.fail_at["kernel"] = HostLacksError("program lzop was not found", hint="apt")
    assert "lzop" in shell.fails(5, "image", "register", "--name", "mine", "--from", "debian")


def test_a_build_is_explained_and_not_done(daemon, shell):
    text = shell.ok("image", "build", "debian", "--explain").stdout
    assert re.search(r"^mirrors +the tools' default$", text, re.MULTILINE)
    assert re.search(r"^files, hooks +/etc/motd 111111111111, hooks\[0\] 222222222222$", text, re.MULTILINE)  # fmt: skip
    assert "\npackages: 1 package\n  mmdebstrap '--customize-hook=a b'\n" in text
    plan = json.loads(shell.ok("image", "build", "--explain", "--format", "json").stdout)
    assert plan["stages"][1]["commands"] == [["mmdebstrap", "--customize-hook=a b"]]
    assert shell.ok("image", "build", "--explain", "--format", "name").stdout == "resolve\npackages\n"  # fmt: skip
    assert shell.ok("image", "list", "--format", "name").stdout == "debian\n"
    assert daemon.operations == []


def test_images_are_compared_and_inventoried(daemon, shell):
    shell.ok("image", "build", "debian", "--name", "mine")
    lines = shell.ok("image", "diff", "debian", "mine").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["WHAT", "KIND", "NAME"],
        ["changed", "package", "bash"],
        ["added", "file", "/etc/mo\ufffdtd"],
    ]
    only = shell.ok("image", "diff", "debian", "mine", "--files", "--format", "name").stdout
    assert len(only.splitlines()) == 1
    found = json.loads(shell.ok("image", "diff", "debian", "mine", "--format", "json").stdout)
    assert found["packages"] == [{"what": "changed", "name": "bash", "before": "5.1", "after": "5.2"}]  # fmt: skip
    same = shell.ok("image", "diff", "debian", "debian")
    assert "do not differ" in same.stdout + same.stderr
    assert json.loads(shell.ok("image", "sbom", "mine").stdout)["spdxVersion"] == "SPDX-2.3"
    shell.fails(3, "image", "sbom", "plan9")


def test_images_are_built_listed_and_deleted(daemon, shell):
    shell.ok("image", "build", "debian", "--name", "mine")
    assert shell.ok("image", "list", "--format", "name").stdout == "debian\nmine\n"
    shell.ok("image", "delete", "mine")
    assert shell.ok("image", "list", "--format", "name").stdout == "debian\n"


def test_operations_are_listed_shown_and_cancelled(daemon, shell):
    daemon.hold = {"boot"}
    identity = shell.ok("vm", "create", "--name", "new", "--no-wait").stdout.strip()
    assert daemon.held.wait(60)
    assert identity in shell.ok("op", "list").stdout
    assert "boot" in shell.ok("op", "show", identity).stdout
    shell.ok("op", "cancel", identity)
    assert json.loads(shell.ok("op", "show", identity, "--format", "json").stdout)["state"] == "cancelled"  # fmt: skip


def test_ctrl_c_detaches_and_says_how_to_follow(daemon, shell):
    daemon.hold = {"boot"}
    process = subprocess.Popen(
        [*ARGV, "vm", "create", "--name", "new"], env=shell.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert daemon.held.wait(60)
    while not process.stderr.readline().startswith("vmm "):  # the stage before
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert f"banger op wait {daemon.operations[0].id}" in err
    assert daemon.operations[0].state == "running"


def test_a_daemon_of_another_version_is_warned_of_once(tmp_path, shell):
    with FakeDaemon(tmp_path, version="9.9.9"):
        done = shell.ok("vm", "list", "--format", "json")
    assert done.stdout.strip() == "[]"
    assert done.stderr.count("warning:") == 1
    assert "9.9.9" in done.stderr


def test_a_warning_about_a_vm_reaches_its_user(daemon, shell):
    daemon.vm("web").status.warning = "the guest can reach this host"
    done = shell.ok("vm", "show", "web", "--format", "json")
    assert done.stderr == "warning: the guest can reach this host\n"
    assert json.loads(done.stdout)["status"]["warning"]


def test_a_reader_that_goes_away_is_no_error(daemon, shell):
    daemon.vms += [a_vm(f"vm-{n}") for n in range(3000)]
    done = subprocess.run(
        f"{sys.executable} -m banger.cli.main vm list | head -1",
        shell=True, env=shell.env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts_are_scripts(shell, name, tmp_path):
    script = shell.ok("completion", name).stdout
    assert "banger" in script
    if program := shutil.which(name):
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", tmp_path / "script"], check=True)


def test_names_are_completed(daemon, shell):
    env = {"_BANGER_COMPLETE": "bash_complete", "COMP_WORDS": "banger vm stop w", "COMP_CWORD": "3"}
    assert "web" in shell("vm", env=env).stdout


def test_setup_ssh_is_idempotent_keeps_other_lines_and_can_be_taken_back(shell):
    config = shell.home / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text("Host other\n    User me\n")
    shell.ok("setup", "ssh")
    once = config.read_text()
    assert once.splitlines()[0].startswith("Include ")
    assert once.endswith("Host other\n    User me\n")
    shell.ok("setup", "ssh")
    assert config.read_text() == once
    shell.ok("setup", "ssh", "--remove")
    assert config.read_text() == "Host other\n    User me\n"


def test_setup_ssh_can_only_print(shell):
    assert "Host *.banger" in shell.ok("setup", "ssh", "--print").stdout
    assert not (shell.home / ".ssh").exists()


def test_config_shows_values_and_where_they_are_from(shell):
    (shell.home / "config.toml").write_text('memory = "3G"\n')
    rows = {
        line.split()[0]: line.split() for line in shell.ok("config", "show").stdout.splitlines()
    }
    assert rows["memory"][1:] == ["3G", str(shell.home / "config.toml")]
    assert rows["vcpus"][1:] == ["2", "default"]
    assert shell.ok("config", "path").stdout.strip() == str(shell.home / "config.toml")


def test_on_a_terminal_stages_are_drawn_live(daemon, shell):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*ARGV, "vm", "create", "--name", "new"], env={**shell.env, "TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            said += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait(10) == 0
    assert b"\x1b[" in said
    assert all(stage.encode() in said for stage in CREATE_STAGES)


def test_a_daemon_of_another_host_behind_a_forwarded_socket_is_not_stopped_by_its_pid(
    daemon, shell
):
    """The pid that it tells is somebody else's here: this test's own."""
    for lock in ("", "4711\n"):
        (shell.home / "state").mkdir(exist_ok=True)
        (shell.home / "state" / "bangerd.lock").write_text(lock)
        assert "is not of this host" in shell.fails(4, "daemon", "stop")
