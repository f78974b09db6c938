"""A test host: a guest with KVM in which the real Firecracker runs. banger builds its image, and banger's CLI drives it.

    python -m tests.framework.testhost [--keep] [--without-firecracker] [pytest arguments | bench/NAME.py [RUNS]]

runs the suite ``tests/host -m "firecracker or device_mapper"`` in one, or a benchmark whose result it brings back, prints what it prints and
ends with its status.
"""

import argparse
import importlib.metadata
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.framework import firecracker_program
from tests.framework.installation import CACHE, ROOT, Installation, built

NAME = "testhost"
HOME = "/opt/banger"  # the source tree, with a .venv as in a checkout
XFS = "/srv"  # a file system that shares blocks: copies of an image cost nothing there
PYTHON = (
    3,
    11,
)  # what the image's Debian has; what the tests need was installed for the Python that runs this
TEST_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist")
MODULES = "tun loop xfs dm_snapshot vhost_vsock"  # the others come when they are asked for
SUITE = ("tests/host", "-m", "firecracker or device_mapper")
_SET_UP = f"""set -eu
if grep -qw svm /proc/cpuinfo; then kvm=kvm_amd; else kvm=kvm_intel; fi
modprobe -a $kvm {MODULES}
truncate -s 7G /var/lib/xfs.img
mkfs.xfs -q -m reflink=1 /var/lib/xfs.img
mount -o loop /var/lib/xfs.img {XFS}
mkdir {XFS}/state {XFS}/tmp
for tar in code image; do tar -x -f /var/lib/$tar.tar -C /; rm /var/lib/$tar.tar; done
"""


def why_not(*, firecracker=True):
    """Why a test host cannot be had, or has nothing to test; empty if it can."""
    if sys.version_info[:2] != PYTHON:
        wanted, here = ".".join(map(str, PYTHON)), sys.version.split()[0]
        return (
            f"the test host's Python is {wanted}, and this one, whose packages it gets, is {here}"
        )
    return firecracker_program.programs()[1] if firecracker else ""


class TestHost:
    """The VM `NAME` of an `Installation`, whose end it shares."""

    __test__ = False  # pytest: this is no test

    def __init__(self, installation):
        self._banger = installation

    def create(self):
        """Build the image if need be, boot it and wait until it is ready."""
        self._banger.run("image", "build", NAME, timeout=1800)
        options = f"--name {NAME} --image {NAME} --memory 4G --vcpus 2 --work-size 1G --timeout 600"
        self._banger.run("vm", "create", *options.split(), timeout=660)

    def run(self, *argv, **options):
        """A command in the test host, to its end; ``check=False`` allows a status other than 0."""
        return self._banger.run("vm", "exec", NAME, "--", *argv, **options)

    def stream(self, *argv, workdir=HOME):
        """A command in the test host whose output is ours; its status."""
        return self._banger.start("vm", "exec", "-w", workdir, NAME, "--", *argv).wait()

    def provide(self, programs, image):
        """Give it banger, its tests, ``programs`` (`firecracker_program.Programs`, or None) and the files of the image ``image`` (a directory)."""
        with tempfile.TemporaryDirectory(prefix="bgr-testhost-") as name:
            code, disk = Path(name) / "code.tar", Path(name) / "image.tar"
            write_code(code, programs)
            target = f"{XFS.strip('/')}/state/images"
            subprocess.run(
                ["tar", "-c", "-S", "-f", disk, "-C", image.parent, f"--transform=s,^,{target}/,", image.name],
                check=True, timeout=120,
            )  # fmt: skip
            for tar in (code, disk):
                self._banger.run("vm", "cp", str(tar), f"{NAME}:/var/lib/{tar.name}", timeout=300)
        self.run("sh", "-c", _SET_UP, timeout=300)

    def pytest(self, *arguments):
        """Run the suite, or what the arguments say instead; pytest's exit status."""
        words = (
            arguments
            if any(word.startswith("tests/") for word in arguments)
            else (*SUITE, *arguments)
        )
        return self._python(
            "-m", "pytest", f"--basetemp={XFS}/tmp/pytest", "-p", "no:cacheprovider", *words
        )

    def bench(self, script, *arguments):
        """Run a benchmark and fetch its result; its exit status."""
        status = self._python(script, *arguments)
        if status == 0:
            result = f"bench/results/{Path(script).stem}.json"
            self._banger.run("vm", "cp", f"{NAME}:{HOME}/{result}", str(ROOT / result))
        return status

    def _python(self, *words):
        settings = {
            "BANGER_TEST_CACHE": f"{XFS}/state",
            "BANGER_TEST_HOST": "1",
            "BANGER_FIRECRACKER": "/usr/local/bin/firecracker",
            "BANGER_JAILER": "/usr/local/bin/jailer",
            "TMPDIR": f"{XFS}/tmp",
        }
        variables = [f"{key}={value}" for key, value in settings.items()]
        return self.stream("env", *variables, f"{HOME}/.venv/bin/python", *words)


def write_code(path, programs):
    """A tar, to be unpacked at /: the files that git tracks, a .venv with what the tests import, and both programs, if there are any."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    packages = f"{HOME}/.venv/lib/python{PYTHON[0]}.{PYTHON[1]}/site-packages"
    with tarfile.open(path, "w") as archive:
        for name in tracked.stdout.split("\0"):
            if name and (ROOT / name).is_file():
                archive.add(ROOT / name, f"{HOME}/{name}")
        for distribution in distributions():
            for file in distribution.files or ():
                source = Path(str(distribution.locate_file(file)))
                if source.is_file() and ".." not in file.parts and source.suffix != ".pyc":
                    archive.add(source, f"{packages}/{file}")
        _text(archive, f"{packages}/checkout.pth", f"{HOME}/src\n")
        _text(archive, f"{HOME}/.venv/pyvenv.cfg", "home = /usr/bin\n")
        link = tarfile.TarInfo(f"{HOME}/.venv/bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        archive.addfile(link)
        for name in firecracker_program.NAMES if programs else ():
            program = getattr(programs, name).resolve()
            member = archive.gettarinfo(program, f"usr/local/bin/{name}")
            member.mode = 0o755
            with program.open("rb") as file:
                archive.addfile(member, file)


def _text(archive, name, text):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o644
    archive.addfile(info, io.BytesIO(text.encode()))


def distributions(tools=TEST_TOOLS):
    """The installed distributions that banger and ``tools`` need, and all that these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in (*project["dependencies"], *tools)]
    found = {}
    while wanted:
        requirement = wanted.pop()
        extras = requirement.extras or {""}
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution
        for line in distribution.requires or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
    return list(found.values())


def the_image():
    """The directory of the debian image, built if need be."""
    return CACHE / "images" / built("debian-base", "debian")["id"]


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description="run the firecracker suite in a test host")
    parser.add_argument(
        "--keep", action="store_true", help="leave the test host, and say how to reach it"
    )
    parser.add_argument(
        "--without-firecracker", action="store_true", help="run what needs none: the device mapper's tests"
    )  # fmt: skip
    options, arguments = parser.parse_known_args()
    if why := why_not(firecracker=not options.without_firecracker):
        sys.exit(f"error: no firecracker suite: {why}")
    programs, _ = firecracker_program.programs()
    installation = Installation(tempfile.mkdtemp(prefix="bgr-testhost-"), builder=True)
    try:
        host = TestHost(installation)
        host.create()
        host.provide(programs, the_image())
        if arguments and arguments[0].startswith("bench/"):
            return host.bench(*arguments)
        return host.pytest(*arguments)
    finally:
        if options.keep:
            _tell(installation)
        else:
            left = installation.close()
            shutil.rmtree(installation.directory)
            if left:
                sys.exit("error: left behind: " + "\n".join(left))


def _tell(installation):
    names = ("BANGER_CONFIG", "BANGER_STATE_DIR", "BANGER_RUNTIME_DIR")
    settings = " ".join(f"{name}={installation.env[name]}" for name in names)
    print(
        f"the test host stays; into it:\n  env {settings} {sys.executable} -m banger.cli.main ssh {NAME}"
    )


if __name__ == "__main__":
    sys.exit(main())
