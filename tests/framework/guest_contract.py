"""What every guest with a working agent does, whatever carries the bytes: run by tests/contract (a socket) and tests/vm (a real guest)."""

import asyncio
import hashlib
import io
import os
import signal
import struct
import tarfile

import pytest

from banger.api.frames import FrameType as F
from banger.model.errors import InvalidInputError, NotFoundError, RefusedError


async def run(guest, *argv, stdin=None, tty=False, env=None, cwd=None, timeout=30):
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


class GuestContract:
    """Subclass it where a fixture ``guest`` is at hand."""

    async def test_health_has_every_field(self, guest):
        health = await guest.healthz()
        assert health["status"] == "ok"
        assert health["version"]
        assert health["uptime_s"] > 0
        assert isinstance(health["services"], list)

    async def test_stats_and_ports_have_plausible_values(self, guest):
        stats = await guest.stats()
        assert 0 < stats["memory_available_bytes"] <= stats["memory_total_bytes"]
        assert all(
            {"protocol", "address", "port", "process"} <= set(port) for port in await guest.ports()
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
        out, _, status = await run(guest, "sh", "-c", "sleep 30 & echo done", timeout=15)
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
        async with asyncio.timeout(20):
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
        async with asyncio.timeout(20):
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
        for _ in range(100):
            _, _, status = await run(guest, "sh", "-c", f"kill -0 {pid}")
            if status != 0:
                return
            await asyncio.sleep(0.05)
        pytest.fail("the command lived on")

    @pytest.mark.parametrize(
        "body",
        [{}, {"argv": []}, {"argv": "ls"}, {"argv": ["a\0b"]}, {"argv": ["ls"], "env": {"": "x"}}],
    )
    async def test_a_bad_exec_request_is_refused_and_the_agent_lives(self, guest, body):
        with pytest.raises(InvalidInputError):
            await guest.exec(body)
        assert (await guest.healthz())["status"] == "ok"

    async def test_a_hundred_commands_at_once(self, guest):
        results = await asyncio.gather(
            *(
                run(guest, "sh", "-c", f"echo {n}; cat", stdin=b"x" * 1000, timeout=100)
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
        _, _, status = await run(guest, "sh", "-c", "rm -rf /tmp/contract && mkdir /tmp/contract")
        assert status == 0
        buffer = io.BytesIO()
        blob = os.urandom(300_000)
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            add(archive, "d", kind=tarfile.DIRTYPE, mode=0o750)
            add(archive, "d/file", blob, mode=0o640)
            add(archive, "d/link", kind=tarfile.SYMTYPE, linkname="file")
            add(archive, "d/späce name", b"x")
        await guest.put_files("/tmp/contract", pieces(buffer.getvalue()))
        listing, _, _ = await run(
            guest,
            "sh",
            "-c",
            "stat -c %a /tmp/contract/d /tmp/contract/d/file; readlink /tmp/contract/d/link",
        )
        assert listing.split() == [b"750", b"640", b"file"]
        back = b"".join([chunk async for chunk in guest.get_files("/tmp/contract/d")])
        with tarfile.open(fileobj=io.BytesIO(back)) as archive:
            assert sorted(archive.getnames()) == ["d", "d/file", "d/link", "d/späce name"]
            assert archive.extractfile("d/file").read() == blob
        await run(guest, "rm", "-rf", "/tmp/contract")

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


def add(archive, name, data=b"", *, kind=tarfile.REGTYPE, mode=0o644, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(data), linkname
    archive.addfile(info, io.BytesIO(data))


async def pieces(data):
    for start in range(0, len(data), 50_000):
        yield data[start : start + 50_000]
