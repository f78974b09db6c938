"""The blocking client against the API's routes: shapes, errors, operations, streams."""

import os
import signal
import socket
import threading

import pytest

from banger.api import routes, schema
from banger.api.frames import FrameType
from banger.client import follow, sdk, transport
from banger.client.sdk import Client
from banger.client.streams import NotStartedError
from banger.client.transport import parse_answer
from banger.model.errors import (
    BangerError,
    CancelledOperationError,
    DaemonUnreachableError,
    GuestNotReadyError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from tests.framework.fake_daemon import a_vm, an_image
from tests.framework.installation import wait_until
from tests.framework.stages import CREATE_STAGES


def all_of(console):
    with console:
        return b"".join(iter(lambda: console.receive(10), None))


CALLS = {
    routes.INFO: lambda c: c.info(),
    routes.METRICS: lambda c: c.metrics(),
    routes.VMS_LIST: lambda c: c.vms(),
    routes.VMS_CREATE: lambda c: c.create_vm(schema.VmCreate(name="new")),
    routes.VM_SHOW: lambda c: c.vm("web"),
    routes.VM_SET: lambda c: c.set_vm("off", schema.VmPatch(vcpus=4)),
    routes.VM_DELETE: lambda c: c.delete_vm("web"),
    routes.VM_START: lambda c: c.start_vm("off", timeout_s=9),
    routes.VM_STOP: lambda c: c.stop_vm("web", force=True),
    routes.VM_RESTART: lambda c: c.restart_vm("web"),
    routes.VM_PAUSE: lambda c: c.pause_vm("web"),
    routes.VM_RESUME: lambda c: c.resume_vm("web"),
    routes.VM_PROMOTE: lambda c: c.promote_vm("off", schema.ImagePromote("mine")),
    routes.VM_HEALTH: lambda c: c.health("web"),
    routes.VM_STATS: lambda c: c.stats("web"),
    routes.VM_PORTS: lambda c: c.ports("web"),
    routes.VM_FORWARDS: lambda c: c.forwards("web"),
    routes.VM_FORWARDS_ADD: lambda c: c.add_forwards("web", [schema.Forward(0, 80)]),
    routes.VM_FORWARDS_REMOVE: lambda c: c.remove_forward("web", 40000, "udp"),
    routes.VM_LOGS: lambda c: c.logs("web").__enter__(),
    routes.VM_FILES_GET: lambda c: c.get_files("web", "/root").__enter__(),
    routes.VM_EXEC: lambda c: c.run("web", schema.ExecRequest(["true"])),
    routes.VM_CONSOLE: lambda c: all_of(c.console("web")),
    routes.VM_PROXY: lambda c: b"".join(c.proxy("web", 7).pieces()),
    routes.PLAN_CREATE: lambda c: c.plan_create(schema.VmCreate(name="new")),
    routes.PLAN_START: lambda c: c.plan_start("off"),
    routes.IMAGES_LIST: lambda c: c.images(),
    routes.IMAGES_BUILD: lambda c: c.build_image(schema.ImageBuild()),
    routes.IMAGES_REGISTER: lambda c: c.register_image(schema.ImageRegister("mine", base="debian")),
    routes.IMAGES_IMPORT: lambda c: c.import_image(schema.ImageImport("/x.tar")),
    routes.IMAGE_EXPORT: lambda c: c.export_image("debian", schema.ImageExport("/x.tar")),
    routes.IMAGE_SHOW: lambda c: c.image("debian"),
    routes.PLAN_IMAGE_BUILD: lambda c: c.plan_image(schema.ImageBuild()),
    routes.IMAGE_SBOM: lambda c: c.image_sbom("debian"),
    routes.IMAGE_DIFF: lambda c: c.image_diff("debian", "debian"),
    routes.IMAGE_DELETE: lambda c: c.delete_image("debian"),
    routes.EVENTS: lambda c: c.events().close(),
    routes.DISK_USAGE: lambda c: c.disk_usage(),
    routes.AUDIT: lambda c: c.audit(),
    routes.AUDIT_FIX: lambda c: c.fix(),
    routes.PRUNE: lambda c: c.prune(schema.Prune(dry_run=True)),
    routes.OPERATIONS_LIST: lambda c: c.operations(limit=3),
    routes.OPERATION_SHOW: lambda c: c.operation(c.create_vm(schema.VmCreate(name="o")).id),
    routes.OPERATION_EVENTS: lambda c: c.wait(c.create_vm(schema.VmCreate(name="e"))),
    routes.OPERATION_CANCEL: lambda c: c.cancel(c.create_vm(schema.VmCreate(name="c")).id),
}


@pytest.mark.parametrize("route", routes.ALL, ids=lambda route: f"{route.method} {route.path}")
def test_there_is_a_method_for_every_route(daemon, client, route):
    daemon.vms += [a_vm("web"), a_vm("off", "stopped")]
    daemon.tcp[7] = lambda connection: None
    daemon.hold = {"boot"}
    if route is routes.OPERATION_EVENTS:
        daemon.hold = set()
    if route is routes.VM_FILES_PUT:  # its request is complete only at the end of the block
        with client.put_files("web", "/root") as writer:
            writer.write(bytes(10240))
    else:
        CALLS[route](client)
    wanted = route.path.split("/")

    def asked():
        return any(
            method == route.method
            and len(wanted) == len(path.split("/"))
            and all(
                w == g or w.startswith("{") for w, g in zip(wanted, path.split("/"), strict=True)
            )
            for method, path, _ in list(daemon.requests)
        )

    # A WebSocket may be closed before the daemon's thread has noted who asked.
    wait_until(asked, 30)


def test_answers_are_the_apis_structs(daemon, client):
    vm = a_vm("web")
    daemon.vms.append(vm)
    assert client.vms() == [vm]
    assert client.vm(vm.id[:5]) == vm
    assert client.images() == daemon.images
    assert client.info().vms == 1
    assert client.health("web") == daemon.health


def test_errors_come_back_as_the_class_they_were(daemon, client):
    with pytest.raises(NotFoundError) as caught:
        client.vm("nothing")
    assert caught.value.hint == "banger vm list"
    daemon.vms.append(a_vm("web"))
    with pytest.raises(RefusedError):
        client.set_vm("web", schema.VmPatch(vcpus=4))
    with pytest.raises(RefusedError):
        client.create_vm(schema.VmCreate(name="web"))
    daemon.images.append(an_image("kept", used_by=["web"]))
    with pytest.raises(RefusedError, match="is used by"):
        client.delete_image("kept")


@pytest.mark.parametrize("ref", ["", "a/b", "../x", "A", "a b", "x" * 64, "-a", "a?b", "ä"])
def test_references_that_nothing_can_have_never_reach_the_daemon(daemon, client, ref):
    for call in (client.vm, client.delete_vm, client.image, client.operation):
        with pytest.raises(InvalidInputError):
            call(ref)
    assert daemon.requests == []


def test_an_answer_that_is_not_the_apis_is_an_error_not_a_crash(daemon, client):
    for status, body in ((500, b"<html>"), (404, b"[]"), (400, b'{"code": 1}'), (502, b"")):
        daemon.raw["GET", "/v1/vms"] = (status, body)
        with pytest.raises(BangerError, match=str(status)):
            client.vms()
    daemon.raw["GET", "/v1/vms"] = (200, b'[{"id": 5}]')
    with pytest.raises(BangerError, match="not understood"):
        client.vms()
    daemon.raw["GET", "/v1/vms"] = (200, b"nonsense")
    with pytest.raises(BangerError, match="not JSON"):
        client.transport.fetch(routes.VMS_LIST)


def test_new_fields_of_a_newer_daemon_are_kept_in_plain_answers_and_ignored_in_structs(
    daemon, client
):
    daemon.vms.append(a_vm("web"))
    plain = client.transport.fetch(routes.VM_SHOW, {"ref": "web"})
    plain["colour"] = "red"
    import json

    daemon.raw["GET", "/v1/vms/web"] = (200, json.dumps(plain).encode())
    assert client.vm("web").name == "web"
    assert client.transport.fetch(routes.VM_SHOW, {"ref": "web"})["colour"] == "red"


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n", b"SSH-2.0-x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"],
)  # fmt: skip
def test_a_cut_or_foreign_answer_is_refused(data):
    with pytest.raises(ValueError, match="answer"):
        parse_answer(data)


def test_a_daemon_that_hangs_up_or_hangs_is_unreachable(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            Client(path, timeout_s=0.05) as client,
            pytest.raises(DaemonUnreachableError, match="in time"),
        ):
            client.vms()

        def hang_up():
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with Client(path) as client, pytest.raises(DaemonUnreachableError):
            client.vms()
        thread.join()
    with (
        Client(tmp_path / "none") as client,
        pytest.raises(DaemonUnreachableError, match="not running"),
    ):
        client.vms()


def test_following_gives_every_stage_and_ends_with_the_operation(daemon, client):
    seen = list(client.follow(client.create_vm(schema.VmCreate(name="new"))))
    assert [stage.name for stage in seen[-1].stages] == CREATE_STAGES
    assert seen[-1].state == "succeeded"
    assert follow.outcome(seen[-1]) is seen[-1]


def test_following_goes_on_where_the_stream_is_cut(daemon, client, monkeypatch):
    monkeypatch.setattr(follow, "AGAIN_S", 0.01)
    daemon.cut_events_after = 1
    operation = client.create_vm(schema.VmCreate(name="new"))
    assert client.wait(operation).state == "succeeded"
    assert sum(path.endswith("/events") for _, path, _ in daemon.requests) >= 1


def test_a_silent_stream_is_given_up_and_the_operation_asked_for(daemon, client, monkeypatch):
    monkeypatch.setattr(follow, "QUIET_S", 0.05)
    monkeypatch.setattr(follow, "AGAIN_S", 0.01)
    daemon.hold = {"boot"}
    operation = client.create_vm(schema.VmCreate(name="new"))
    asked = ("GET", f"/v1/operations/{operation.id}", {})

    def release():
        wait_until(lambda: asked in daemon.requests, 15)
        daemon.release()

    thread = threading.Thread(target=release)
    thread.start()
    assert client.wait(operation).state == "succeeded"
    thread.join()
    assert asked in daemon.requests


def test_following_survives_a_daemon_that_is_away_for_a_while(
    daemon, client, monkeypatch, tmp_path
):
    monkeypatch.setattr(follow, "AGAIN_S", 0.01)
    operation = client.create_vm(schema.VmCreate(name="new"))
    away = daemon.socket_path.with_suffix(".away")
    daemon.socket_path.rename(away)
    threading.Timer(0.2, lambda: away.rename(daemon.socket_path)).start()
    assert client.wait(operation).state == "succeeded"


def test_a_failed_operation_raises_its_error(daemon, client):
    daemon.fail_at = {
        "boot": GuestNotReadyError("VM new did not boot", detail="panic", hint="banger vm logs new")
    }
    with pytest.raises(GuestNotReadyError) as caught:
        client.wait(client.create_vm(schema.VmCreate(name="new")))
    assert (caught.value.detail, caught.value.hint) == ("panic", "banger vm logs new")


def test_waiting_ends_at_its_deadline_and_the_operation_goes_on(daemon, client):
    daemon.hold = {"boot"}
    operation = client.create_vm(schema.VmCreate(name="new"))
    assert daemon.held.wait(30)
    with pytest.raises(GuestNotReadyError, match="goes on"):
        client.wait(operation, timeout_s=0.1)
    assert client.operation(operation.id).state == "running"


def test_a_cancelled_operation_says_so(daemon, client):
    daemon.hold = {"boot"}
    operation = client.create_vm(schema.VmCreate(name="new"))
    assert daemon.held.wait(30)
    client.cancel(operation.id)
    with pytest.raises(CancelledOperationError):
        client.wait(operation)


def test_run_returns_status_and_output_of_a_command(daemon, client):
    daemon.vms.append(a_vm("web"))
    done = client.run(
        "web", schema.ExecRequest(["sh", "-c", "cat; echo err >&2; exit 3"]), input=b"in\0\xff"
    )
    assert (done.status, done.stdout, done.stderr) == (3, b"in\0\xff", b"err\n")


def test_a_command_that_writes_before_it_reads_holds_nobody_up(daemon, client):
    daemon.vms.append(a_vm("web"))
    argv = ["sh", "-c", "head -c 8000000 /dev/zero; wc -c >&2"]
    done = client.run("web", schema.ExecRequest(argv), input=bytes(8_000_000), timeout_s=60)
    assert (done.status, len(done.stdout), done.stderr.strip()) == (0, 8_000_000, b"8000000")


def test_a_megabyte_goes_in_and_comes_back_byte_by_byte(daemon, client):
    daemon.vms.append(a_vm("web"))
    data = os.urandom(1 << 20)
    assert client.run("web", schema.ExecRequest(["cat"]), input=data).stdout == data


def test_environment_directory_and_signals_reach_the_command(daemon, client):
    daemon.vms.append(a_vm("web"))
    (daemon.root / "srv").mkdir()
    script = "echo $COLOUR; pwd"
    done = client.run("web", schema.ExecRequest(["sh", "-c", script], {"COLOUR": "red"}, "/srv"))
    assert done.stdout.decode().split() == ["red", str(daemon.root / "srv")]
    with client.exec("web", schema.ExecRequest(["sh", "-c", "echo up; exec sleep 30"])) as stream:
        assert stream.receive(10) == (FrameType.STDOUT, b"up\n")
        stream.signal(signal.SIGTERM)
        assert stream.receive(10) == (FrameType.EXIT, bytes([128 + signal.SIGTERM]))


def test_a_command_that_cannot_be_started_is_status_127(daemon, client):
    daemon.vms.append(a_vm("web"))
    with pytest.raises(NotStartedError) as caught:
        client.run("web", schema.ExecRequest(["/no/such"]))
    assert caught.value.exit_status == 127
    assert "/no/such" in caught.value.detail


def test_exec_in_a_vm_that_does_not_run_is_refused(daemon, client):
    daemon.vms.append(a_vm("off", "stopped"))
    with pytest.raises(RefusedError, match="stopped"):
        client.run("off", schema.ExecRequest(["true"]))
    with pytest.raises(NotFoundError):
        client.run("none", schema.ExecRequest(["true"]))


def test_run_has_a_deadline(daemon, client):
    daemon.vms.append(a_vm("web"))
    with pytest.raises(TimeoutError):
        client.run("web", schema.ExecRequest(["sleep", "30"]), timeout_s=0.2)


def test_a_guest_that_is_lost_is_an_error(daemon, client):
    daemon.vms.append(a_vm("web"))
    with client.exec("web", schema.ExecRequest(["sh", "-c", "sleep 30"])) as stream:
        stream._socket._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(BangerError, match="lost"):
            stream.receive(10)


def test_a_stream_that_another_thread_closes_while_it_is_read_is_over(daemon, client, monkeypatch):
    daemon.vms.append(a_vm("web"))
    daemon.tcp[80] = lambda connection: connection.recv()
    with client.proxy("web", 80) as stream:

        class Closing:
            def register(self, *_):
                pass

            def poll(self, *_):
                stream.close()
                return True

        monkeypatch.setattr("banger.client.websocket.select.poll", Closing)
        assert list(stream.pieces()) == []


def test_proxy_carries_bytes_both_ways(daemon, client):
    def echo(connection):
        connection.send(connection.recv().upper())

    daemon.vms.append(a_vm("web"))
    daemon.tcp[80] = echo
    with client.proxy("web", 80) as stream:
        assert stream.send(b"hello")
        assert b"".join(stream.pieces()) == b"HELLO"


def test_the_console_comes_in_messages(daemon, client):
    daemon.vms.append(a_vm("web"))
    assert all_of(client.console("web", tail_bytes=18)) == b"line 198\nline 199\n"
    with pytest.raises(NotFoundError):
        all_of(client.console("none"))


def test_logs_come_in_pieces(daemon, client):
    daemon.vms.append(a_vm("web"))
    with client.logs("web", tail_bytes=18) as pieces:
        assert b"".join(pieces) == b"line 198\nline 199\n"


def test_the_daemons_version_is_known_after_any_answer(daemon, client):
    assert client.transport.daemon_version is None
    client.vms()
    assert client.transport.daemon_version == daemon.version


def test_metrics_are_text(client):
    assert client.metrics() == "banger_vms 0\n"


def test_a_first_connection_that_is_not_used_is_closed(daemon):
    connected = transport.open_socket(daemon.socket_path)
    sdk.Client("x", transport=transport.Transport(daemon.socket_path, connected=connected)).close()
    assert connected.fileno() == -1
