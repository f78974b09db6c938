"""What every guest with a working agent does, whatever carries the bytes: run by tests/contract (sockets) and tests/vm (a real guest)."""

import asyncio
import contextlib
import hashlib
import io
import os
import signal
import socket
import struct
import tarfile

import pytest

from banger.api.frames import FrameType as F
from banger.guest.bulk import MAGIC as BULK_MAGIC
from banger.guest.bulk import BulkPort
from banger.model.errors import GuestNotReadyError, InvalidInputError, NotFoundError, RefusedError

PLACE = f"/tmp/contract-{os.getpid()}"
"""In the guest; where that is this host, another process of the tests may be at the same."""


async def run(guest, *argv, stdin=None, tty=False, env=None, cwd=None, timeout=90):
    """stdout, stderr and status of a command."""
    session = await guest.exec({"argv": list(argv), "tty": tty, "env": env or {}, "cwd": cwd})
    out, err, status = bytearray(), bytearray(), None
    try:
        async with asyncio.timeout(timeout):
            if stdin is None:
                await session.send(F.STDIN_EOF)
                feeding = None
            else:
                feeding = asyncio.create_task(feed(session, stdin))
            async for kind, payload in session.frames():
                if kind == F.STDOUT:
                    out += payload
                elif kind == F.STDERR:
                    err += payload
                elif kind == F.EXIT:
                    status = payload[0]
                elif kind == F.FAILED:
                    status = payload.decode()
            if feeding:
                await feeding
    finally:
        await session.close()
    return bytes(out), bytes(err), status


async def feed(session, data):
    for start in range(0, len(data), 65536):
        await session.send(F.STDIN, data[start : start + 65536])
    await session.send(F.STDIN_EOF)


async def restart_agent(guest):
    """Let systemd restart the agent of a real guest, and see that it is reached again."""
    before = (await run(guest, "pidof", "-s", "python3"))[0]
    with contextlib.suppress(GuestNotReadyError):  # it may be gone before it has answered
        await run(guest, "systemctl", "restart", "--no-block", "banger-agent")
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(GuestNotReadyError):
                after, _, status = await run(guest, "pidof", "-s", "python3")
                if status == 0 and after != before:
                    return
            await asyncio.sleep(0.1)


class GuestContract:
    """Subclass it where a fixture ``guest`` is at hand. ``carriers`` are the ways that files can go."""

    carriers = ("stream",)

    def pytest_generate_tests(self, metafunc):
        if "carrier" in metafunc.fixturenames:
            metafunc.parametrize("carrier", self.carriers)

    @pytest.fixture
    def through_ports(self, monkeypatch):
        """Tells how many bytes have gone through bulk ports."""
        counted = [0]
        put, exactly = BulkPort._put, BulkPort._exactly

        async def counting_put(port, data):
            await put(port, data)
            counted[0] += len(data)

        async def counting_exactly(port, size):
            data = await exactly(port, size)
            counted[0] += size
            return data

        monkeypatch.setattr(BulkPort, "_put", counting_put)
        monkeypatch.setattr(BulkPort, "_exactly", counting_exactly)
        return lambda: counted[0]

    async def test_health_has_every_field(self, guest):
        health = await guest.healthz(30)
        assert health["status"] == "ok"
        assert health["version"]
        assert health["uptime_s"] > 0
        assert isinstance(health["services"], list)

    async def test_a_channel_that_is_opened_again_and_again_answers_each_time(self, guest):
        for number in range(40):
            await guest.close()
            await asyncio.sleep(number % 4 * 0.004)
            assert (await guest.healthz(30))["status"] == "ok"

    async def test_stats_and_ports_have_plausible_values(self, guest):
        stats = await guest.stats(30)
        assert 0 < stats["memory_available_bytes"] <= stats["memory_total_bytes"]
        assert all(
            {"protocol", "address", "port", "process"} <= set(port)
            for port in await guest.ports(30)
        )

    async def test_a_command_gives_its_output_and_status(self, guest):
        assert await run(guest, "sh", "-c", "echo out; echo err >&2; exit 7") == (
            b"out\n",
            b"err\n",
            7,
        )

    async def test_a_killed_command_has_128_and_its_signal(self, guest):
        assert (await run(guest, "sh", "-c", "kill -TERM $$"))[2] == 128 + signal.SIGTERM

    async def test_a_missing_program_is_said_to_be_missing(self, guest):
        assert "No such file" in (await run(guest, "/no/such/program"))[2]

    async def test_environment_and_directory_are_as_asked(self, guest):
        out, _, _ = await run(
            guest, "sh", "-c", "echo $COLOUR $HOME; pwd", env={"COLOUR": "blue"}, cwd="/usr"
        )
        assert out == b"blue /root\n/usr\n"

    async def test_streams_are_byte_exact(self, guest):
        data = os.urandom(1 << 20) + bytes(range(256)) * 16
        out, _, status = await run(guest, "cat", stdin=data)
        assert status == 0
        assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()

    async def test_a_command_with_a_background_child_still_ends(self, guest):
        out, _, status = await run(guest, "sh", "-c", "sleep 120 & echo done", timeout=90)
        assert (out, status) == (b"done\n", 0)

    async def test_a_terminal_has_the_asked_size_and_can_be_resized(self, guest):
        session = await guest.exec(
            {
                "argv": ["sh", "-c", "stty size; read x; stty size; tty"],
                "tty": True,
                "rows": 30,
                "cols": 90,
            }
        )
        out = b""
        async with asyncio.timeout(60):
            async for kind, payload in session.frames():
                if kind == F.STDOUT:
                    out += payload
                    if out.count(b"\n") == 1 and b"30 90" in out:
                        await session.send(F.RESIZE, struct.pack(">HH", 40, 100))
                        await session.send(F.STDIN, b"\n")
                elif kind == F.EXIT:
                    assert payload == b"\0"
        assert b"30 90" in out
        assert b"40 100" in out
        assert b"/dev/pts/" in out
        await session.close()

    async def test_a_signal_reaches_the_command(self, guest):
        session = await guest.exec(
            {"argv": ["sh", "-c", "trap 'exit 9' INT; echo up; while :; do sleep 0.05; done"]}
        )
        status = None
        async with asyncio.timeout(60):
            async for kind, payload in session.frames():
                if kind == F.STDOUT:
                    await session.send(F.SIGNAL, bytes([signal.SIGINT]))
                elif kind == F.EXIT:
                    status = payload[0]
        assert status == 9

    async def test_a_command_whose_caller_vanishes_is_ended(self, guest):
        session = await guest.exec({"argv": ["sh", "-c", "echo $$; exec sleep 300"]})
        async for kind, payload in session.frames():
            if kind == F.STDOUT:
                pid = int(payload)
                break
        await session.close()
        async with asyncio.timeout(60):  # less than it sleeps
            while (await run(guest, "sh", "-c", f"kill -0 {pid}"))[2] == 0:
                await asyncio.sleep(0.05)

    @pytest.mark.parametrize(
        "body",
        [{}, {"argv": []}, {"argv": "ls"}, {"argv": ["a\0b"]}, {"argv": ["ls"], "env": {"": "x"}}],
    )
    async def test_a_bad_exec_request_is_refused_and_the_agent_lives(self, guest, body):
        with pytest.raises(InvalidInputError):
            await guest.exec(body)
        assert (await guest.healthz(30))["status"] == "ok"

    async def test_a_hundred_commands_at_once(self, guest):
        results = await asyncio.gather(
            *(
                run(guest, "sh", "-c", f"echo {n}; cat", stdin=b"x" * 1000, timeout=200)
                for n in range(100)
            )
        )
        assert [out for out, _, _ in results] == [
            f"{n}\n".encode() + b"x" * 1000 for n in range(100)
        ]

    async def test_a_reader_that_stalls_does_not_stop_the_others(self, guest):
        stalled = await guest.exec({"argv": ["sh", "-c", "yes | head -c 50000000"]})
        await asyncio.sleep(0.2)
        assert (await run(guest, "echo", "hi"))[0] == b"hi\n"
        await stalled.close()

    async def test_trees_go_in_and_come_out_as_they_were(self, guest):
        _, _, status = await run(guest, "sh", "-c", f"rm -rf {PLACE} && mkdir {PLACE}")
        assert status == 0
        buffer = io.BytesIO()
        blob = os.urandom(300_000)
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            add(archive, "d", kind=tarfile.DIRTYPE, mode=0o750)
            add(archive, "d/file", blob, mode=0o640)
            add(archive, "d/link", kind=tarfile.SYMTYPE, linkname="file")
            add(archive, "d/späce name", b"x")
        await guest.put_files(PLACE, pieces(buffer.getvalue()))
        listing, _, _ = await run(
            guest,
            "sh",
            "-c",
            f"stat -c %a {PLACE}/d {PLACE}/d/file; readlink {PLACE}/d/link",
        )
        assert listing.split() == [b"750", b"640", b"file"]
        back = b"".join([chunk async for chunk in guest.get_files(f"{PLACE}/d")])
        with tarfile.open(fileobj=io.BytesIO(back)) as archive:
            assert sorted(archive.getnames()) == ["d", "d/file", "d/link", "d/späce name"]
            assert archive.extractfile("d/file").read() == blob
        await run(guest, "rm", "-rf", PLACE)

    async def test_a_tree_of_everything_is_byte_exact_both_ways(
        self, guest, through_ports, carrier
    ):
        await run(guest, "sh", "-c", f"rm -rf {PLACE}; mkdir -p {PLACE}/in")
        await run(guest, "sh", "-c", MAKE_TREE, cwd=f"{PLACE}/in", timeout=90)
        with all_ports_busy(guest, busy=carrier == "mux"):
            tree = await fetch(guest, f"{PLACE}/in/.")
            await guest.put_files(PLACE, pieces(retarget(tree, "out")))
            back = await fetch(guest, f"{PLACE}/out/.")
        assert (through_ports() > 0) == (carrier == "bulk")
        was, now = contents(tree), contents(back)
        names = was.keys() | now.keys()
        assert now == was, {
            name: (was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name)
        }
        script = f"for d in in out; do (cd $d; {LIST_TREE}) > $d.txt; done; cmp in.txt out.txt"
        out, err, status = await run(guest, "sh", "-c", script, cwd=PLACE, timeout=90)
        assert status == 0, (out, err)
        blocks, _, _ = await run(guest, "stat", "-c", "%b", f"{PLACE}/out/sparse")
        assert int(blocks) < 2048  # of 512 bytes, for 20 MiB
        await run(guest, "rm", "-rf", PLACE)

    async def test_three_transfers_at_once_leave_room_for_commands(self, guest, through_ports):
        """A VM with ports has two: the third transfer goes over the mux, beside the commands."""
        await run(guest, "sh", "-c", f"rm -rf {PLACE}; mkdir -p {PLACE}")
        blobs = [os.urandom(1 << 20) * 8 for _ in range(3)]

        async def there_and_back(number):
            archive = tar_of(f"blob{number}", blobs[number])
            await guest.put_files(PLACE, pieces(archive))
            back = await fetch(guest, f"{PLACE}/blob{number}")
            return contents(back)[f"blob{number}"][-1]

        copies = [asyncio.create_task(there_and_back(number)) for number in range(3)]
        commands = 0
        while not all(copy.done() for copy in copies):
            assert (await run(guest, "echo", "beside"))[0] == b"beside\n"
            commands += 1
        assert [await copy for copy in copies] == [digest(blob) for blob in blobs]
        assert commands >= 1
        assert through_ports() > (16 << 20) or "bulk" not in self.carriers
        await run(guest, "rm", "-rf", PLACE)

    @pytest.mark.parametrize("way", ["get", "put", "put cancelled"])
    async def test_a_client_that_vanishes_leaves_the_way_to_the_next(
        self, guest, through_ports, way
    ):
        await run(
            guest,
            "sh",
            "-c",
            f"mkdir -p {PLACE}; head -c 30000000 /dev/urandom > {PLACE}/big",
        )
        for _ in range(3):
            await vanish(guest, way)
            archive = tar_of("small", b"whole")
            await guest.put_files(PLACE, pieces(archive))
            assert contents(await fetch(guest, f"{PLACE}/small"))["small"][-1] == digest(b"whole")
        before = through_ports()
        async with asyncio.timeout(
            90
        ):  # the agent may need a moment to see that the last one has gone
            while through_ports() == before and "bulk" in self.carriers:
                await fetch(guest, f"{PLACE}/small")
        await run(guest, "rm", "-rf", PLACE)

    async def test_a_refusal_in_the_middle_ends_the_transfer(self, guest):
        await run(guest, "mkdir", "-p", PLACE)
        whole = tar_of("fine", os.urandom(3 << 20), escape=os.urandom(1 << 20) * 40)
        with pytest.raises(InvalidInputError, match="outside"):
            await asyncio.wait_for(guest.put_files(PLACE, pieces(whole)), 60)
        assert (await run(guest, "rm", f"{PLACE}/fine"))[2] == 0
        await guest.put_files(PLACE, pieces(tar_of("fine", b"x")))
        assert (await run(guest, "cat", f"{PLACE}/fine"))[0] == b"x"
        await run(guest, "rm", "-r", PLACE)

    async def test_a_file_that_shrinks_while_it_is_read_is_no_success(self, guest, carrier):
        await run(guest, "sh", "-c", f"head -c 50000000 /dev/urandom > {PLACE}.shrinks")
        with (
            all_ports_busy(guest, busy=carrier == "mux"),
            pytest.raises(GuestNotReadyError, match="broke off") as caught,
        ):
            await shrink_while_reading(guest, f"{PLACE}.shrinks")
        assert "shorter" in caught.value.detail
        await run(guest, "rm", f"{PLACE}.shrinks")

    @pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape"])
    async def test_a_member_that_would_land_elsewhere_is_refused(self, guest, name):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            add(archive, name, b"x")
        with pytest.raises(InvalidInputError, match="outside"):
            await guest.put_files("/tmp", pieces(buffer.getvalue()))

    async def test_missing_paths_are_not_found(self, guest):
        with pytest.raises(NotFoundError):
            _ = [chunk async for chunk in guest.get_files("/no/such/file")]
        with pytest.raises(NotFoundError):
            await guest.put_files("/no/such/directory", pieces(b""))

    async def test_a_closed_port_of_the_guest_is_refused(self, guest):
        with pytest.raises(RefusedError):
            await guest.proxy(9)


class SerialContract(GuestContract):
    """What a guest on virtio-serial does besides: two bulk ports, and the mux when they are taken."""

    carriers = ("bulk", "mux")

    async def test_a_port_that_another_client_holds_is_not_waited_for_long(self, guest):
        with contextlib.ExitStack() as stack:
            for number in range(2):
                other = stack.enter_context(socket.socket(socket.AF_UNIX))
                other.connect(str(guest._paths.bulk_socket(number)))
            await guest.put_files("/tmp", pieces(tar_of("held", b"over the mux")))
            assert contents(await fetch(guest, "/tmp/held"))["held"][-1] == digest(b"over the mux")
        await guest.put_files("/tmp", pieces(tar_of("held", b"again")))
        assert (await run(guest, "cat", "/tmp/held"))[0] == b"again"
        await run(guest, "rm", "/tmp/held")

    @pytest.mark.parametrize(
        "garbage",
        [
            os.urandom(300_000),
            bytes(100_000),
            BULK_MAGIC + bytes(16) + b"\0\0\0\4abcd\0\0\0\0",
            BULK_MAGIC[:-1],
            BULK_MAGIC + bytes(15),
        ],
    )
    async def test_garbage_in_a_port_is_skipped(self, guest, garbage):
        for number in range(2):
            with socket.socket(socket.AF_UNIX) as other:
                other.settimeout(0.3)
                other.connect(str(guest._paths.bulk_socket(number)))
                with contextlib.suppress(TimeoutError):  # more than the port holds
                    other.sendall(garbage)
        await guest.put_files("/tmp", pieces(tar_of("clean", b"clean")))
        assert contents(await fetch(guest, "/tmp/clean"))["clean"][-1] == digest(b"clean")
        await run(guest, "rm", "/tmp/clean")

    @pytest.mark.parametrize("then", [b"\xff" * 2000, b"\0\4\0\0" + b"x" * 2000, b"\0\0\1\0x"])
    async def test_nonsense_instead_of_blocks_is_no_success(self, guest, then):
        """A length beyond all bounds, a block that is no tar, a block that does not end."""
        with guest._files._ports.take() as port:
            async with guest._files._exchange("PUT /tmp") as exchange:
                await port.send_mark()
                headers = {**guest._headers(), **port.header}
                await exchange.send("PUT", "/files?path=/tmp", headers)
                assert await exchange.status() == 200
                await port._put(then)
        await guest.put_files("/tmp", pieces(tar_of("after", b"fine")))
        assert (await run(guest, "cat", "/tmp/after"))[0] == b"fine"
        await run(guest, "rm", "/tmp/after")


def add(archive, name, data=b"", *, kind=tarfile.REGTYPE, mode=0o644, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(data), linkname
    archive.addfile(info, io.BytesIO(data))


MAKE_TREE = r"""
mkdir -p a/b/c empty && chmod 750 a && chmod 1777 empty
head -c 3000001 /dev/urandom > a/random; head -c 512 /dev/urandom > a/one; : > a/nothing; printf x > a/b/x
ln a/random a/b/hard; ln -s ../random a/b/link; ln -s /no/where dangling; mkfifo pipe
dd if=/dev/urandom of=sparse bs=1000 count=3 seek=20971 conv=notrunc 2>/dev/null
printf odd > "a/$(printf '\303\244 \\ \nx')"; printf raw > "a/$(printf '\377\376')"
long=$(printf '%0250d' 7); mkdir $long; printf deep > $long/$long
chmod 4711 a/one; chmod 600 a/b/x; chown 1234:4321 a/nothing; touch -d @1000000000.5 a/random
i=0; while [ $i -lt 200 ]; do printf $i > a/b/c/$i; i=$((i+1)); done
"""
LIST_TREE = "find . ! -name . -printf '%P %y %m %U %G %s %n %l %TF %TH%TM\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def tar_of(name, data, escape=None):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add(archive, name, data)
        if escape is not None:
            add(archive, "../escape", escape)
    return buffer.getvalue()


def retarget(tree, name):
    """The archive of ``.`` with its members below ``name`` instead."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tree)) as old,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old:
            data = old.extractfile(member) if member.isreg() else None
            member.name = f"{name}/{member.name}".removesuffix("/.")
            if member.islnk():
                member.linkname = f"{name}/{member.linkname}"
            member.pax_headers = {}
            new.addfile(member, data)
    return buffer.getvalue()


def contents(tree):
    """Every member of an archive: what it is and a digest of its data."""
    with tarfile.open(fileobj=io.BytesIO(tree)) as archive:
        return {
            m.name: (m.type, m.mode, m.uid, m.gid, m.size, m.mtime, m.linkname, digest(archive.extractfile(m).read()) if m.isreg() else "")
            for m in archive
        }  # fmt: skip


async def fetch(guest, path):
    return b"".join([chunk async for chunk in guest.get_files(path)])


@contextlib.contextmanager
def all_ports_busy(guest, *, busy=True):
    """As if other transfers of this host had all bulk ports."""
    held = guest._files._ports._busy
    if busy:
        held |= set(range(4))
    yield
    held.clear()


async def vanish(guest, way):
    """Begin a transfer and be gone before its end."""
    if way == "get":
        reading = guest.get_files(f"{PLACE}/big")
        await anext(reading)
        await reading.aclose()
        return

    async def endless():
        archive = tar_of("half", bytes(1 << 20) * 30)
        yield archive[: 1 << 20]
        if way == "put":
            raise ClientGoneError
        yield archive[1 << 20 : 5 << 20]
        await asyncio.sleep(3600)

    sending = asyncio.create_task(guest.put_files(PLACE, endless()))
    if way == "put":
        with pytest.raises(ClientGoneError):
            await sending
        return
    await asyncio.sleep(0.3)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def shrink_while_reading(guest, path):
    async for _ in guest.get_files(path):
        await run(guest, "truncate", "-s", "1000", path)


class ClientGoneError(Exception):
    """Whoever sent the tree has gone."""


async def pieces(data):
    for start in range(0, len(data), 50_000):
        yield data[start : start + 50_000]
