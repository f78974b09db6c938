"""Runs programs as a VMM is run, confined or not, as this user or another, on this host or one that refuses things.

As a program (it needs no package): a job in JSON on stdin, the result in JSON on stdout.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OTHER_UID = 20077  # nobody's
OTHER_GROUP = 20078
RUN_S = 30.0


def python_of(uid):
    """A Python that ``uid`` can run: this one, or the distribution's; None if there is none."""
    probe = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import banger.host.confine, ctypes"
    )
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        done = subprocess.run(
            [*as_user(uid), python, "-I", "-S", "-c", probe],
            capture_output=True,
            check=False,
            cwd="/",
        )
        if done.returncode == 0:
            return os.path.realpath(python)
    return None


def as_user(uid):
    if uid == os.geteuid():
        return []
    # setpriv itself still has root's capabilities when it executes; env, which executes once more, has none.
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", "/usr/bin/env"]


def run(job, uid, python):
    """Results of ``job`` as ``uid``, one for each of its policies."""
    argv = [*as_user(uid), python, "-I", "-S", str(Path(__file__))]
    done = subprocess.run(
        argv, input=json.dumps(job), capture_output=True, text=True, timeout=150, check=False, cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "BANGER_SECRET": "x"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _refuse(names):
    """Make this host refuse what ``names`` say, for this process and all it starts."""
    from banger.host import seccomp, syscalls

    made = seccomp.Filter(os.uname().machine)
    if "namespaces" in names:  # as Debian once did for ordinary users
        made.deny(seccomp.FORBIDDEN["unshare"])
    if "landlock" in names:
        made.deny((444, 444), seccomp.ENOSYS)
    if "mount" in names:  # as Ubuntu does: a user namespace is made, and worth nothing
        made.deny(seccomp.FORBIDDEN["mount"], 13)
    if "filters" in names:  # a kernel without them, or one that has too many already
        set_seccomp = [(0x15, 0, 1, 22)]  # the argument is PR_SET_SECCOMP
        made.deny_where(
            {"x86_64": (157, 0), "aarch64": (0, 167)}[os.uname().machine], 0, set_seccomp
        )
    syscalls.forbid_new_privileges()
    seccomp.load(made.program())


@contextlib.contextmanager
def _keys(name):
    """A secret in a session keyring and in the user's keyring, as a login session has."""
    add, control = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    libc = ctypes.CDLL(None)
    libc.syscall(control, 1, 0)  # KEYCTL_JOIN_SESSION_KEYRING: not the tester's own
    made = [
        libc.syscall(add, b"user", name.encode(), b"secret", ctypes.c_size_t(6), ring)
        for ring in (-3, -4)
    ]
    try:
        yield
    finally:
        libc.syscall(control, 9, made[1], -4)  # KEYCTL_UNLINK


def _listen(number):
    """An abstract Unix socket of this network, at descriptor ``number``, as a daemon passes its listeners."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0banger-jail-{os.getpid()}")
    listener.listen()
    os.dup2(listener.detach(), number)


async def _attempt(job, policy):
    from banger.host import confine, proc
    from banger.host.confine_plan import Confinement, Limits
    from banger.model.errors import BangerError

    listed = {key: tuple(value) for key, value in job["confinement"].items()}
    confinement = Confinement(**listed, limits=Limits(**job["limits"]))
    log = Path(job["log"])
    log.unlink(missing_ok=True)
    try:
        more = {"log": log, "keep": job.get("listen", ())}
        if policy == "off":
            confined = confine.start_unconfined(job["argv"], **more)
        else:
            confined = await confine.start(job["argv"], confinement, **more)
    except BangerError as error:
        kind = type(error).__name__
        return {"error": kind, "what": error.what, "detail": error.detail, "hint": error.hint}
    try:
        async with asyncio.timeout(RUN_S):
            returncode = await proc.wait_gone(confined.identity)
    finally:
        await proc.kill(confined.identity)
    return {
        "how": confined.how,
        "warning": confined.warning,
        "returncode": returncode,
        "output": log.read_text(),
    }


async def _work(job):
    if os.geteuid() == 0:
        os.setgroups([0, OTHER_GROUP])
    if job.get("refuse"):
        _refuse(job["refuse"])
    for number in job.get("listen", ()):
        _listen(number)
    with _keys("banger-secret") if job.get("keys") else contextlib.nullcontext():
        return [await _attempt(job, policy) for policy in job["policies"]]


def on_a_host_without(names, argv, **options):
    """Run ``argv`` on a host that refuses what ``names`` say; options as of `subprocess.run`."""
    program = [sys.executable, str(Path(__file__)), ",".join(names)]
    return subprocess.run([*program, *argv], capture_output=True, text=True, check=True, **options)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src")]
    if len(sys.argv) > 1:
        _refuse(sys.argv[1].split(","))
        os.execvp(sys.argv[2], sys.argv[2:])
    print(json.dumps(asyncio.run(_work(json.load(sys.stdin)))))
