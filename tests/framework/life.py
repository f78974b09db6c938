"""What every VM must do, whichever VMM runs it."""

import os


def exec_ssh_and_cp_work(installation, directory, name="box"):
    """A status, a host name, and a mebibyte there and back."""
    data = os.urandom(1 << 20)
    (directory / "data").write_bytes(data)
    installation.run("vm", "cp", str(directory / "data"), f"{name}:/root/data")
    installation.run("vm", "cp", f"{name}:/root/data", str(directory / "back"))
    assert (directory / "back").read_bytes() == data
    assert installation.run("vm", "ssh", name, "--", "cat", "/etc/hostname").stdout == f"{name}\n"
    done = installation.run("vm", "exec", name, "--", "sh", "-c", "exit 7", check=False)
    assert done.returncode == 7
