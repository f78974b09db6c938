"""A system in XBPS packages that boots as Void does: runit, openssh, python3, a kernel with compressed modules.

The files are those of Debian's packages, one XBPS package each, downloaded by apt; the kernel, the base files and runit's links are put together here as
Void has them. Downloads are kept in the tests' cache.
"""

import io
import re
import subprocess
import tarfile
import tomllib
from pathlib import Path

from tests.framework.installation import CACHE, ROOT
from tests.framework.xbps_repository import RECIPE, Repository, link, write_recipe, zstd_of

WANTED = "runit bash dash openssh-server python3 iproute2 coreutils util-linux mount procps busybox-static sed grep findutils mawk tar libpam-modules libpam-runtime passwd ncurses-base".split()
_UNWANTED = re.compile(
    r"perl|libperl|debconf|usrmerge|lib(text|file|number)-|init-system|sysvinit|adduser|ucf|runit-helper|lsb-|sensible|sysuser|media-types|mailcap|dpkg|base-|debianutils|install-info|kmod"
)
_MODULES = "virtio virtio_ring virtio_mmio virtio_blk virtio_net virtio_console virtio_rng failover net_failover vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport rng_core".split()
_DROPPED = re.compile(
    r"\./(usr/share/(doc|man|locale|lintian|info|bash-completion|bug)|etc/(runit|sv|init\.d|default|cron|update-motd))/"
)
_MERGED = ("bin/", "sbin/", "lib/", "lib64/", "libx32/", "lib32/")
ROOT_GROUPS = "root:x:0:\ntty:x:5:\nutmp:x:43:\nnogroup:x:65534:\n"
BASE_INSTALL = """
[ "$1" = post ] || exit 0
mkdir -p dev proc sys run tmp root home mnt opt var/log var/lib var/tmp var/empty etc/skel
chmod 1777 tmp var/tmp
ln -sfn ../run var/run
touch var/log/lastlog var/log/wtmp
"""
SSHD_INSTALL = """
[ "$1" = post ] || exit 0
grep -q ^sshd: etc/passwd || useradd -r -M -d /run/sshd -s /usr/sbin/nologin sshd
"""
PAM = b"auth sufficient pam_unix.so\naccount required pam_unix.so\nsession required pam_unix.so\npassword required pam_unix.so\n"


def _run(*argv, cwd=None):
    return subprocess.run(argv, check=True, capture_output=True, cwd=cwd).stdout


def download():
    """The .deb files of what is wanted and all that it needs, and of the kernel; [Path]."""
    debs = CACHE / "void-debs"
    debs.mkdir(parents=True, exist_ok=True)
    plan = _run(
        "apt-get",
        "install",
        "-s",
        "--no-install-recommends",
        "-o",
        "Dir::State::status=/dev/null",
        *WANTED,
    )
    names = re.findall(r"^Inst (\S+) \((\S+)", plan.decode(), re.MULTILINE)
    kernel = re.search(
        r"Depends: (linux-image-\S+)",
        _run("apt-cache", "depends", "linux-image-cloud-amd64").decode(),
    )[1]
    wanted = [name for name, _ in names if not _UNWANTED.match(name)] + [kernel]
    missing = [name for name in wanted if not list(debs.glob(f"{name}_*.deb"))]
    if missing:
        _run("apt-get", "-o", "APT::Sandbox::User=root", "download", *missing, cwd=debs)
    return [next(iter(sorted(debs.glob(f"{name}_*.deb"), reverse=True))) for name in wanted]


def _members(deb):
    archive = tarfile.open(fileobj=io.BytesIO(_run("dpkg-deb", "--fsys-tarfile", deb)))  # noqa: SIM115  in memory
    for member in archive:
        if not member.isdir() and not _DROPPED.match(member.name):
            name = member.name.removeprefix("./")
            yield ("usr/" + name if name.startswith(_MERGED) else name), member, archive


def _files(deb):
    """A .deb's content as `Repository.add` takes it; hard links become files."""
    files = {}
    for name, member, archive in _members(deb):
        if member.issym():
            files[name] = link(member.linkname)
        else:
            files[name] = (
                archive.extractfile(member).read(),
                member.mode & 0o7777,
                member.uid,
                member.gid,
            )
    return files


def _kernel(deb):
    """The kernel with the few modules that a guest needs, compressed as Void's are, and the lists that depmod would make."""
    files, release = {}, ""
    modules = {}
    for name, member, archive in _members(deb):
        if name.startswith("boot/vmlinuz-"):
            release = name.removeprefix("boot/vmlinuz-")
            files[name] = archive.extractfile(member).read()
        elif name.endswith("modules.builtin"):
            files[name] = archive.extractfile(member).read()
        elif name.endswith(".ko") and Path(name).stem.replace("-", "_") in _MODULES:
            modules[name.partition("/modules/")[2].partition("/")[2]] = archive.extractfile(
                member
            ).read()
    base = f"usr/lib/modules/{release}"
    by_name = {Path(path).stem.replace("-", "_"): path for path in modules}
    lines = []
    for path, data in modules.items():
        needed = re.search(rb"\0depends=([^\0]*)", b"\0" + data)[1].decode()
        names = _closure([n for n in needed.split(",") if n], by_name, modules)
        lines.append(f"{path}.zst: {' '.join(f'{by_name[n]}.zst' for n in names)}".rstrip() + "\n")
        files[f"{base}/{path}.zst"] = zstd_of(data)
    files[f"{base}/modules.dep"] = "".join(lines).encode()
    return files


def _closure(names, by_name, modules):
    """As depmod lists them: the nearest first, the deepest last."""
    found = []
    for name in names:
        deeper = re.search(rb"\0depends=([^\0]*)", b"\0" + modules[by_name[name]])[1].decode()
        found += [name, *_closure([n for n in deeper.split(",") if n], by_name, modules)]
    return [n for i, n in enumerate(found) if n not in found[i + 1 :]]


def _base():
    usr = {name: link(f"usr/{name}") for name in ("bin", "lib", "lib64", "sbin")}
    pam = {
        f"etc/pam.d/common-{kind}": PAM
        for kind in ("auth", "account", "session", "session-noninteractive", "password")
    }
    return {
        **usr, **pam,
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", "etc/shadow": (b"root:!:1::::::\n", 0o600),
        "etc/group": ROOT_GROUPS.encode(), "etc/gshadow": (b"", 0o600), "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        "etc/login.defs": b"SYS_UID_MIN 100\nSYS_UID_MAX 999\nSYS_GID_MIN 100\nSYS_GID_MAX 999\n",
        "etc/profile": b"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", "usr/lib/os-release": b'NAME="Void"\nID="void"\n',
        "usr/bin/awk": link("mawk"),
    }  # fmt: skip


def _runit(files):
    """Debian's runit keeps its control files elsewhere; Void's init is runit-init, and its machine is ended by reboot."""
    return {
        **files, "usr/sbin/init": link("../lib/runit/runit-init"), "usr/bin/runit-init": link("../lib/runit/runit-init"), "usr/sbin/reboot": link("/usr/bin/busybox"), "usr/sbin/poweroff": link("/usr/bin/runit-poweroff"),
        "usr/bin/runit-poweroff": (b"#!/bin/sh\nexec runit-init 0\n", 0o755),
        "etc/runit/stopit": link("/run/runit.stopit"), "etc/runit/reboot": link("/run/runit.reboot"),
    }  # fmt: skip


def make(directory):
    """The repository."""
    repository = Repository(directory)
    repository.add(
        "base-files",
        _base(),
        install=BASE_INSTALL,
        conf=("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"),
    )
    names = []
    for deb in download():
        name, version, _ = deb.name.split("_")
        version = re.sub(r"[^A-Za-z0-9.]+", ".", version.rpartition("%3a")[2]) + "_1"
        kernel = name.startswith("linux-image")
        files = _kernel(deb) if kernel else _files(deb)
        name = "linux-cloud" if kernel else "runit-void" if name == "runit" else name
        repository.add(
            name, _runit(files) if name == "runit-void" else files, version=version, depends=["base-files>=0"],
            install=SSHD_INSTALL if name == "openssh-server" else "",
        )  # fmt: skip
        names.append(name)
    repository.add(
        "guest-system", {"etc/guest": b"all of it\n"}, depends=[f"{name}>=0" for name in names]
    )
    repository.write_index()
    repository.write_tools()
    return repository


def recipe(place, repository, name="void-exp", tools=""):
    """A recipe for this repository, with what ``tools`` adds to it."""
    modules = '"virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport"'
    text = RECIPE.replace('"void-toy"', f'"{name}"').replace(
        '"crc32c_generic", "ext4", "b"', modules
    )
    return write_recipe(place, repository, ("base-files", "guest-system"), text + tools, name=name)


def shipped_tools():
    """What banger's own recipe says of its tools and their service, word by word."""
    text = (ROOT / "config" / "images" / "void.toml").read_text()
    return text[text.index('[[services]]\nname = "opencode"') :]


def tools():
    """The same, as tables."""
    return tomllib.loads(shipped_tools())["tools"]
