"""The stand-in as a process, before any guest: command line, exit statuses, log, socket, HTTP, and how it fails on demand."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.framework.firecracker import official
from tests.framework.firecracker.command import help_text
from tests.framework.firecracker.install import make_firecracker
from tests.framework.firecracker.play import Play, load
from tests.framework.firecracker.running import stand_in

START_S = 20


@pytest.fixture
def program(tmp_path):
    return make_firecracker(tmp_path / "bin")


def run(*argv, env=None, **options):
    return subprocess.run(
        argv, env=env or {}, capture_output=True, text=True, timeout=START_S, stdin=subprocess.DEVNULL, check=False, **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def shared():
    """One process for the tests that only ask."""
    with stand_in("--id", "box-1") as made:
        yield made


def test_the_version_is_the_first_line_with_an_empty_environment(program):
    done = run("env", "-i", program, "--version")
    assert done.stdout.startswith("Firecracker v1.13.1\n\n")
    assert "Firecracker exiting successfully. exit_code=0" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("version", "snapshots"),
    [("1.10.1", "v8.0.0"), ("1.15.1", "v9.0.0"), ("1.16.0", "v10.0.0"), ("1.17.0-dev", "v11.0.0")],
)
def test_it_plays_other_releases(tmp_path, version, snapshots):
    program = make_firecracker(tmp_path, version=version)
    assert run(program, "--version").stdout.startswith(f"Firecracker v{version}\n")
    assert run(program, "--snapshot-version").stdout.startswith(f"{snapshots}\n")


def test_the_program_can_be_copied_alone_as_the_jailer_does(program, tmp_path):
    copy = tmp_path / "elsewhere" / "firecracker"
    copy.parent.mkdir()
    shutil.copy(program, copy)
    assert run(copy, "--version", cwd="/").stdout.startswith("Firecracker v1.13.1\n")


def test_help_names_every_argument(program):
    text = run(program, "--help").stdout
    assert help_text() in text
    for name in "api-sock config-file no-api no-seccomp log-path level show-level show-log-origin metrics-path boot-timer".split():
        assert f"--{name}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bad"], "Found argument 'bad' which wasn't expected, or isn't valid in this context."),
        (["bad"], "Found argument 'bad' which wasn't expected, or isn't valid in this context."),
        (["--id"], "The argument 'id' requires a value, but none was supplied."),
        (["--id", "--no-api"], "The argument 'id' requires a value, but none was supplied."),
        (["--id", "a", "--id", "b"], "The argument 'id' was provided more than once."),
        (["--no-api"], "Argument 'config-file' required, but not found."),
        (["--no-seccomp", "--seccomp-filter", "f"], "Argument 'seccomp-filter' cannot be used together with argument 'no-seccomp'."),
    ],
)  # fmt: skip
def test_a_bad_command_line_ends_with_153_and_its_reason(program, words, said):
    done = run(program, *words)
    assert done.returncode == 153
    assert f"Arguments parsing error: {said}" in done.stdout
    assert done.stderr.startswith("Error: ParseArguments(")
    assert "Firecracker exiting with error. exit_code=153" in done.stdout


def test_a_bad_level_ends_with_152(program):
    done = run(program, "--level", "Loud")
    assert done.returncode == 152
    assert "Invalid value for logger level" in done.stdout


@pytest.mark.parametrize("words", [["--id", "a_b"], ["--id", "x" * 65], ["--config-file", "/no"]])
def test_what_makes_firecracker_panic_aborts(program, words, tmp_path):
    done = run(program, "--api-sock", str(tmp_path / "s"), *words)
    assert done.returncode == -signal.SIGABRT
    assert "panicked" in done.stdout


def test_a_socket_path_that_exists_is_refused(program, tmp_path):
    (tmp_path / "s").write_text("")
    done = run(program, "--api-sock", str(tmp_path / "s"))
    assert done.returncode == 1
    assert (
        f"RunWithApiError error: Failed to open the API socket at: {tmp_path / 's'}. Check that it is not already used."
        in done.stdout
    )
    assert done.stderr == f'Error: RunWithApi(FailedToBindSocket("{tmp_path / "s"}"))\n'


@pytest.mark.parametrize(
    ("path", "why"), [("/no/such/s", "No such file or directory (os error 2)"), ("/tmp/" + "x" * 110, "path must be shorter than SUN_LEN")]
)  # fmt: skip
def test_a_socket_path_that_cannot_be_is_refused(program, path, why):
    done = run(program, "--api-sock", path)
    assert done.returncode == 1
    assert f"Failed to bind and run the HTTP server: IO error: {why}" in done.stdout


def test_the_log_has_firecrackers_form_and_goes_where_it_is_told():
    with stand_in("--id", "box-1", "--show-level", "--level", "warning") as made:
        made.put("/logger", log_path=str(made.directory / "fc.log"), level="Info", show_level=True)
        made.ask("GET", "/machine-config")
        made.fault("PUT", "/boot-source", {"kernel_image_path": "/no"})
        text = (made.directory / "fc.log").read_text()
        assert "Running Firecracker" not in made.console.read_text()  # at level warning
    lines = text.splitlines()
    for line in lines:
        assert re.match(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[box-1:(fc_api|main):(INFO|ERROR)\] ", line
        )
    assert any('received a Get request on "/machine-config".' in line for line in lines)
    assert any(
        'Put request on "/boot-source" with body "{\\"kernel_image_path\\": \\"/no\\"}".' in line
        for line in lines
    )
    assert any(
        "Received Error. Status code: 400 Bad Request. Message: Boot source error:" in line
        for line in lines
    )


def test_a_log_or_metrics_file_that_cannot_be_is_refused(program, tmp_path, shared):
    done = run(program, "--log-path", str(tmp_path / "no" / "log"))
    assert (done.returncode, "Could not initialize logger" in done.stdout) == (1, True)
    done = run(
        program, "--metrics-path", str(tmp_path / "no" / "log"), "--api-sock", str(tmp_path / "s")
    )
    assert (done.returncode, "Could not initialize metrics" in done.stdout) == (1, True)
    assert (
        shared.fault("PUT", "/logger", {"log_path": "/no/log"})
        == "Logger error: Failed to open target file: No such file or directory (os error 2)"
    )
    shared.put("/metrics", metrics_path=str(tmp_path / "metrics"))
    assert shared.fault("PUT", "/metrics", {"metrics_path": str(tmp_path / "metrics")}).endswith(
        "Reinitialization of metrics not allowed."
    )


def test_it_says_who_it_is(shared):
    assert shared.ask("GET", "/") == (
        200,
        {"id": "box-1", "state": "Not started", "vmm_version": "1.13.1", "app_name": "Firecracker"},
    )
    assert shared.ask("GET", "/version") == (200, {"firecracker_version": "1.13.1"})
    assert shared.ask("GET", "/mmds") == (200, {})


NOT_YET = "The requested operation is not supported before starting the microVM."


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PATCH", "/drives/a", {"drive_id": "a", "path_on_host": "/a"}),
        ("PATCH", "/network-interfaces/a", {"iface_id": "a"}),
        ("PATCH", "/balloon", {"amount_mib": 1}),
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 1}),
        ("GET", "/balloon/statistics", None),
        ("PUT", "/snapshot/create", {"snapshot_path": "s", "mem_file_path": "m"}),
        ("PUT", "/actions", {"action_type": "FlushMetrics"}),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
    ],
)  # fmt: skip
def test_what_needs_a_guest_is_refused_before_there_is_one(shared, method, path, body):
    assert shared.fault(method, path, body) == NOT_YET


def test_a_start_without_or_with_a_bad_kernel_is_refused_and_can_be_mended():
    with stand_in() as made:
        assert (
            made.fault("PUT", "/actions", {"action_type": "InstanceStart"})
            == "Start microvm error: Cannot start microvm without kernel configuration."
        )
        made.configure("/etc/passwd")
        assert (
            "failed to load ELF kernel image: Kernel Loader: Invalid Elf magic number"
            in made.fault("PUT", "/actions", {"action_type": "InstanceStart"})
        )
        assert made.ask("GET", "/")[1]["state"] == "Not started"


def test_no_snapshot_is_loaded_once_something_is_configured(shared):
    shared.put("/machine-config", vcpu_count=1, mem_size_mib=128)
    words = shared.fault(
        "PUT",
        "/snapshot/load",
        {"snapshot_path": "s", "mem_backend": {"backend_path": "m", "backend_type": "File"}},
    )
    assert (
        words
        == "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
    )


def test_a_snapshot_that_cannot_be_loaded_ends_the_process():
    with stand_in() as made:
        words = made.fault(
            "PUT",
            "/snapshot/load",
            {"snapshot_path": "/no", "mem_backend": {"backend_path": "m", "backend_type": "File"}},
        )
        assert words.endswith(
            "Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)"
        )
        assert made.process.wait(START_S) == 1
        assert "Failed to build MicroVM: Loading snapshot failed.." in made.console.read_text()


def test_what_is_deprecated_is_marked(shared, tmp_path):
    shared._connection.request(
        "PUT",
        "/vsock",
        json.dumps({"vsock_id": "v", "guest_cid": 3, "uds_path": str(tmp_path / "v")}),
    )
    response = shared._connection.getresponse()
    assert (response.status, response.read(), response.headers["Deprecation"]) == (204, b"", "true")


def raw(made, data, *, whole=True):
    """What comes back for bytes on a connection of their own."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(START_S)
        client.connect(str(made.socket))
        client.sendall(data)
        said = client.recv(65536)
        while whole and (more := client.recv(65536)):
            said += more
    return said


def test_the_head_of_an_answer_is_firecrackers(shared):
    assert raw(
        shared, b"PUT /entropy HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", whole=False
    ) == (b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n")
    said = raw(shared, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", whole=False)
    body = b'{"fault_message":"Invalid request method and/or path: GET nothing."}'
    assert (
        said
        == b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )


def test_a_payload_that_is_too_large_is_refused_in_what_is_no_json(shared):
    said = raw(shared, b"PUT /mmds HTTP/1.1\r\nHost: x\r\nContent-Length: 51201\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.endswith(
        b'{ "error": "Request payload with size 51201 is larger than the limit of 51200 allowed by server.\nAll previous unanswered requests will be dropped." }'
    )


@pytest.mark.parametrize(
    "data", [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"]
)
def test_what_is_no_request_is_refused_and_the_next_client_is_served(shared, data):
    assert raw(shared, data).startswith(b"HTTP/1.1 400 ")
    assert shared.ask("GET", "/")[0] == 200


def test_a_client_that_vanishes_in_the_middle_of_a_request_harms_nobody(shared):
    for data in (b"", b"PU", b"PUT /mmds HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(shared.socket))
            client.sendall(data)
    assert shared.ask("GET", "/")[0] == 200


def test_an_eleventh_connection_is_turned_away(shared):
    assert shared.ask("GET", "/")[0] == 200  # it is the first, also where no other test came before
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(10)]
        for client in clients:
            client.settimeout(START_S)
            client.connect(str(shared.socket))
        assert clients[-1].recv(100).startswith(b"HTTP/1.1 503\r\n")
        assert shared.ask("GET", "/")[0] == 200
    assert shared.ask("GET", "/")[0] == 200


def test_what_the_official_description_forbids_is_refused_although_firecracker_takes_it(
    shared, tmp_path
):
    answer = official.there()
    if not answer:
        pytest.skip(f"{answer.why}; {answer.hint}")
    words = shared.fault("PUT", "/vsock", {"guest_cid": 2, "uds_path": str(tmp_path / "w")})
    assert words == "stand-in: not by the official API: guest_cid: 2 is less than the minimum of 3"


def test_a_description_that_is_missing_is_said_in_the_log(program, tmp_path):
    variables = {official.VARIABLE: str(tmp_path / "no.yaml")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "--api-sock", tmp_path / "s"],
            env=variables,
            stdout=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + START_S
        while "API server started" not in (said := (tmp_path / "log").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert f"{tmp_path / 'no.yaml'}: requests are checked by the stand-in's own rules alone" in said


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGHUP, 156), (signal.SIGXCPU, 154), (signal.SIGTERM, -15), (signal.SIGINT, -2)],
)
def test_signals_end_it_as_they_end_firecracker(number, status):
    with stand_in() as made:
        made.process.send_signal(number)
        assert made.process.wait(START_S) == status
        assert made.errors.read_text() == ""
        assert made.socket.exists()  # Firecracker leaves its socket behind


# Failures on demand


def test_a_play_can_come_from_the_file_beside_the_program_or_the_environment(program, tmp_path):
    (tmp_path / "bin" / "firecracker.play").write_text(json.dumps({"version": "1.7.0"}))
    assert run(program, "--version").stdout.startswith("Firecracker v1.7.0\n")
    said = run(program, "--version", env={"BANGER_FAKE_FC": json.dumps({"version": "1.8.0"})})
    assert said.stdout.startswith("Firecracker v1.8.0\n")


def test_a_play_that_is_unknown_is_an_error():
    with pytest.raises(ValueError, match="explode"):
        load('{"explode": true}')
    assert load(Play(hang=("PUT /actions",)).dump()) == Play(hang=("PUT /actions",))


def test_it_can_end_at_once_with_a_status_and_a_line(tmp_path):
    program = make_firecracker(tmp_path, play=Play(exit_status=148, exit_log="Bad syscall"))
    done = run(program, "--api-sock", str(tmp_path / "s"))
    assert (done.returncode, done.stderr) == (148, "Bad syscall\n")
    assert not (tmp_path / "s").exists()


def test_it_can_never_listen():
    with stand_in(play=Play(binds=False)) as made:
        time.sleep(1)
        assert made.process.poll() is None
        assert not made.socket.exists()


def test_it_can_refuse_a_start_or_any_request():
    with stand_in(play=Play(refuse_start="no luck", refuse={"PUT /entropy": "not today"})) as made:
        made.configure("/bin/sh")
        assert made.fault("PUT", "/actions", {"action_type": "InstanceStart"}) == "no luck"
        assert made.fault("PUT", "/entropy", {}) == "not today"


def test_it_can_hang_and_then_answers_nobody():
    with stand_in(play=Play(hang=("PUT /entropy",))) as made:
        assert made.ask("GET", "/")[0] == 200
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for client, head in (
                (first, b"PUT /entropy HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"),
                (second, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            ):
                client.settimeout(0.5)
                client.connect(str(made.socket))
                client.sendall(head)
                with pytest.raises(TimeoutError):
                    client.recv(100)


def test_it_can_take_its_time():
    with stand_in(play=Play(delay_ms={"GET /version": 300})) as made:
        began = time.monotonic()
        assert made.ask("GET", "/version")[0] == 200
        assert 0.3 <= time.monotonic() - began < 30


def test_it_can_answer_garbage_or_nothing():
    with stand_in(play=Play(garbage=("GET /",), drop=("GET /version",))) as made:
        said = raw(made, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len(said) == 512
        assert not said.startswith(b"HTTP/")
        assert raw(made, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        assert made.ask("GET", "/machine-config")[0] == 200
