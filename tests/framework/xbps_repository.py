"""A real XBPS repository, made in plain Python: packages, index, signatures, and the tarball of xbps-static.

The programs in the tarball are those on PATH where there are any, else the stand-in (`xbps_stand_in`), which is not xbps; `TOOLS` says which.
"""

import gzip
import hashlib
import io
import plistlib
import shutil
import tarfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.framework.toy_root import KERNEL, RELEASE, bz_image, lz4_legacy

ARCH = "x86_64"
TARBALL = "static/xbps-static-latest.x86_64-musl.tar.xz"
REAL = shutil.which("xbps-install") is not None and shutil.which("xbps-reconfigure") is not None
TOOLS = "xbps" if REAL else "a stand-in for xbps"
EPOCH_S = 1_600_000_000


def new_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def fingerprint(key):
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def sign(key, data):
    digest = hashlib.sha256(data).digest()
    return key.sign(digest, padding.PKCS1v15(), utils.Prehashed(SHA256()))


def link(target):
    return ("link", target)


def tar_of(members, *, compress=True):
    """``members`` are TarInfo and data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    return gzip.compress(buffer.getvalue(), 1, mtime=0) if compress else buffer.getvalue()


def member(name, data=b"", *, mode=0o644, kind=tarfile.REGTYPE, target="", uid=0, gid=0):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.mtime, info.uid, info.gid = (
        kind,
        mode,
        target,
        EPOCH_S,
        uid,
        gid,
    )
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, data if kind == tarfile.REGTYPE else None


class Repository:
    """A mirror's directory, ``current`` and ``static`` below it."""

    def __init__(self, directory, key=None):
        self.directory = Path(directory)
        self.key = key or new_key()
        self.index = {}
        for name in ("current", "static"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    def add(
        self, name, files, *, version="1.0_1", depends=(), install="", conf=(), raw=(), arch=ARCH
    ):
        """``files`` maps paths without a slash at their beginning to bytes, (bytes, mode), (bytes, mode, uid, gid) or `link`; ``raw``
        are members more, of whatever kind.
        """
        pkgver = f"{name}-{version}"
        lists, members = {"files": [], "conf_files": [], "links": [], "dirs": []}, []
        for path, what in files.items():
            if isinstance(what, tuple) and what[0] == "link":
                target = what[1]
                members.append(member(f"./{path}", kind=tarfile.SYMTYPE, target=target, mode=0o777))
                lists["links"].append({"file": f"/{path}", "target": target})
            else:
                data, mode, *owner = what if isinstance(what, tuple) else (what, 0o644)
                uid, gid = owner or (0, 0)
                members.append(member(f"./{path}", data, mode=mode, uid=uid, gid=gid))
                kind = "conf_files" if f"/{path}" in conf else "files"
                lists[kind].append(
                    {
                        "file": f"/{path}",
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "size": len(data),
                    }
                )
        props = {
            "pkgver": pkgver, "pkgname": name, "version": version, "architecture": arch, "run_depends": list(depends),
            "installed_size": sum(info.size for info, _ in members), "short_desc": name, "maintainer": "nobody", "license": "none",
        }  # fmt: skip
        head = [member("./INSTALL", install.encode(), mode=0o755)] if install else []
        head += [
            member("./props.plist", plistlib.dumps(props)),
            member("./files.plist", plistlib.dumps({k: v for k, v in lists.items() if v})),
        ]
        self.put(name, props, tar_of([*head, *members, *raw]))

    def put(self, name, props, data):
        """A package file, its signature and its entry in the index."""
        path = self.directory / "current" / f"{props['pkgver']}.{props['architecture']}.xbps"
        path.write_bytes(data)
        path.with_name(f"{path.name}.sig2").write_bytes(sign(self.key, data))
        entry = {key: value for key, value in props.items() if key not in {"pkgname", "version"}}
        entry["filename-sha256"], entry["filename-size"] = (
            hashlib.sha256(data).hexdigest(),
            len(data),
        )
        self.index[name] = entry
        return path

    def file(self, name):
        entry = self.index[name]
        return self.directory / "current" / f"{entry['pkgver']}.{entry['architecture']}.xbps"

    def write_index(self, *, signed=True, index=None):
        """``index`` in place of what is there; `xbps` wants both members, in this order."""
        key = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        meta = plistlib.dumps(
            {
                "public-key": key,
                "public-key-size": 2048,
                "signature-by": "a test",
                "signature-type": "rsa",
            }
        )
        members = [
            member("index.plist", plistlib.dumps(self.index if index is None else index)),
            member("index-meta.plist", meta if signed else b""),
        ]
        path = self.directory / "current" / f"{ARCH}-repodata"
        path.write_bytes(tar_of([*members, member("stage.plist")]))
        return path

    def write_tools(self):
        """The tarball; with real programs it has those of PATH, which must not need a library of this host at another place."""
        stand_in = Path(__file__).with_name("xbps_stand_in.py").read_bytes()
        members = []
        for name in ("xbps-install", "xbps-reconfigure"):
            data = Path(shutil.which(name)).read_bytes() if REAL else stand_in
            members.append(member(f"./usr/bin/{name}.static", data, mode=0o755))
        path = self.directory / TARBALL
        path.write_bytes(tar_of(members))
        return path


BASE_INSTALL = """
[ "$1" = post ] || exit 0
mkdir -p dev proc sys run tmp root home var/log var/lib var/tmp etc/skel
chmod 1777 tmp var/tmp
echo 'PS1=x' > etc/skel/.bashrc
ln -sf ../run var/run
"""
_APPLETS = "sh cat chmod cp grep ln mkdir mv rm sed chown id mount ls echo ip".split()


def toy(directory, key=None):
    """A repository of a system that boots nowhere, but is installed, configured and finished as a real one is."""
    repository = Repository(directory, key)
    repository.add(
        "base-files",
        {
            "bin": link("usr/bin"), "sbin": link("usr/bin"), "lib": link("usr/lib"), "usr/sbin": link("bin"),
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/shadow": (b"root:!:1::::::\n", 0o600),
            "etc/group": b"root:x:0:\n", "usr/lib/os-release": b"ID=void\n",
        },
        install=BASE_INSTALL, conf=("/etc/passwd", "/etc/shadow", "/etc/group"),
    )  # fmt: skip
    busybox = Path(shutil.which("busybox")).read_bytes()
    applets = {f"usr/bin/{applet}": link("busybox.static") for applet in _APPLETS}
    repository.add(
        "busybox-static",
        {"usr/bin/busybox.static": (busybox, 0o755), **applets},
        depends=["base-files>=0"],
    )
    repository.add("python3", {"usr/bin/python3": (b"#!/bin/sh\nexit 0\n", 0o755), "usr/bin/owned": (b"mine", 0o4750, 1000, 1000)}, depends=["busybox-static>=1.0_1"])  # fmt: skip
    repository.add("runit-void", {"etc/runit/stopit": link("/run/runit/stopit")}, depends=["python3>=0"], install="echo configured > etc/marked\n", arch="noarch")  # fmt: skip
    modules = f"usr/lib/modules/{RELEASE}"
    repository.add(
        "linux-toy",
        {
            f"boot/vmlinuz-{RELEASE}": bz_image(lz4_legacy(KERNEL), len(KERNEL)),
            f"{modules}/modules.dep": b"kernel/b.ko.zst: kernel/a.ko.zst\nkernel/a.ko.zst:\nkernel/fs/ext4/ext4.ko.zst: kernel/fs/jbd2.ko.zst\nkernel/fs/jbd2.ko.zst:\n",
            f"{modules}/modules.builtin": b"kernel/crypto/crc32c_generic.ko\n",
            **{f"{modules}/kernel/{path}.ko.zst": zstd_of(path.encode() * 9) for path in ("a", "b", "fs/jbd2", "fs/ext4/ext4")},
        },
    )  # fmt: skip
    repository.add("unwanted", {"usr/bin/unwanted": b"x"})
    repository.write_index()
    repository.write_tools()
    return repository


def zstd_of(data):
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd.compress(data)


RECIPE = """name = "void-toy"
distribution = "void"
release = "current"
architecture = "amd64"
packages = "list"
disk_size = "2G"
work_seed_size = "64M"
kernel_modules = ["crc32c_generic", "ext4", "b"]
signing_keys = ["{fingerprint}"]
cmdline = "rw"
[[services]]
name = "ssh"
port = 22
"""


def write_recipe(
    place, repository, packages=("runit-void", "linux-toy"), recipe=RECIPE, name="void-toy"
):
    """A recipe in ``place`` that trusts the repository's key; its path."""
    (place / "images-of").mkdir(exist_ok=True)
    path = place / "images-of" / f"{name}.toml"
    path.write_text(recipe.replace("{fingerprint}", fingerprint(repository.key)))
    (place / "list").write_text("".join(f"{name}\n" for name in packages))
    return path
