"""A forward from a port of 127.0.0.1 into a real guest, both ways, in turns with scp over the forward to its SSH port.

python bench/forward.py
"""

import shutil
import socket
import subprocess
import time

from common import installation, report, summary

SIZE_MIB, ROUNDS, PORT = 128, 7, 8000
GUEST = f"""
import socket
server = socket.create_server(("", {PORT}))
block = bytes(1 << 20)
while True:
    client, _ = server.accept()
    if client.recv(1) == b"o":
        for _ in range({SIZE_MIB}):
            client.sendall(block)
    else:
        count = 1
        while count < {SIZE_MIB} << 20:
            count += len(client.recv(1 << 20))
        client.sendall(b".")
    client.close()
"""


def out_of(port, address="127.0.0.1"):
    """MiB/s of what the guest sends."""
    began = time.monotonic()
    count = 0
    with socket.create_connection((address, port)) as opened:
        opened.sendall(b"o")
        while data := opened.recv(1 << 20):
            count += len(data)
    assert count == SIZE_MIB << 20
    return SIZE_MIB / (time.monotonic() - began)


def into(port, address="127.0.0.1"):
    """MiB/s of what it receives, until it says that it has all."""
    block = b"i" * (1 << 20)
    began = time.monotonic()
    with socket.create_connection((address, port)) as opened:
        for _ in range(SIZE_MIB):
            opened.sendall(block)
        assert opened.recv(1) == b"."
    return SIZE_MIB / (time.monotonic() - began)


def over_ssh(banger, config):
    """MiB/s of as many zeros out of the guest by ssh, over the forward to its port 22."""
    began = time.monotonic()
    argv = ["ssh", "-F", str(config), "box.banger", f"head -c {SIZE_MIB}M /dev/zero"]
    done = subprocess.run(argv, env=banger.env, check=True, capture_output=True)
    assert len(done.stdout) == SIZE_MIB << 20
    return SIZE_MIB / (time.monotonic() - began)


def main():
    """All of it."""
    banger = installation()
    try:
        banger.create("box", "--forward", f"0:{PORT}")
        forwards = banger.vm("box")["status"]["forwards"]
        (port,) = [each["host_port"] for each in forwards if each["guest_port"] == PORT]
        config = banger.directory / "ssh_config"
        config.write_text(banger.run("setup", "ssh", "--print").stdout)
        banger.run("vm", "exec", "box", "--", "systemd-run", "-q", "python3", "-c", GUEST)
        listens = f"until ss -Hltn sport = :{PORT} | grep -q .; do sleep 0.2; done"
        banger.run("vm", "exec", "box", "--", "sh", "-c", listens)
        sent, received, ssh = [], [], []
        for _ in range(ROUNDS):
            received.append(into(port))
            sent.append(out_of(port))
            ssh.append(over_ssh(banger, config))
    finally:
        banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    report(
        "forward",
        {
            "size_mib": SIZE_MIB,
            "into_guest_mib_per_s": summary(received),
            "out_of_guest_mib_per_s": summary(sent),
            "ssh_out_mib_per_s": summary(ssh),
        },
    )


if __name__ == "__main__":
    main()
