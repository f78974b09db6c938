"""A Debian of a dozen small packages made of this host's own programs, and a mirror for it that behaves badly when told to.

The real mmdebstrap, apt and dpkg build a root from it in a few seconds, without the network.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from pathlib import Path

from tests.framework.toy_root import KERNEL, RELEASE, bz_image, lz4_legacy

PROGRAMS = (
    "sh", "dpkg", "dpkg-deb", "dpkg-query", "dpkg-split", "dpkg-trigger", "dpkg-statoverride", "dpkg-divert", "update-alternatives",
    "tar", "rm", "diff", "env", "ls", "cp", "mv", "ln", "mkdir", "rmdir", "cat", "chmod", "chown", "touch", "truncate", "find", "install", "true",
    "id", "stat", "sed", "grep", "date", "sleep", "groupadd", "useradd", "ldconfig", "start-stop-daemon", "xz", "gzip",
)  # fmt: skip
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "group": "root:x:0:\n",
    "shadow": "root:*:19000:0:99999:7:::\n",
    "gshadow": "root:*::\n",
    "skel/.bashrc": "PS1=toy\n",
    "skel/.profile": "",
    "login.defs": "SUB_UID_COUNT 0\nSUB_GID_COUNT 0\n",
    "os-release": "ID=debian\n",
}


def deb(name, version, files, *, fields="", links=()):
    """The bytes of a package with ``files`` (path -> (data, mode)); equal arguments give equal bytes."""
    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Toy <toy@example.org>\nDescription: toy\n{fields}"
    members = [("debian-binary", b"2.0\n"), ("control.tar.gz", _tar({"control": (control.encode(), 0o644)})), ("data.tar.gz", _tar(files, links))]  # fmt: skip
    out = b"!<arch>\n"
    for member, data in members:
        out += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return control, out


def _tar(files, links=()):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        known = set()

        def add(path, data=None, mode=0o755, link=""):
            for parent in reversed(Path(path).parents[:-1]):
                if str(parent) not in known:
                    known.add(str(parent))
                    info = tarfile.TarInfo(f"./{parent}/")
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
            info = tarfile.TarInfo(f"./{path}")
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
                archive.addfile(info)
            elif data is None:
                info.type, info.mode = tarfile.DIRTYPE, mode
                archive.addfile(info)
            else:
                info.size, info.mode = len(data), mode
                archive.addfile(info, io.BytesIO(data))

        for path, target in links:
            add(path, link=target)
        for path, (data, mode) in sorted(files.items()):
            add(path, data, mode)
    return gzip.compress(raw.getvalue(), 1, mtime=0)


def base_files():
    """This host's programs with their libraries, and stand-ins for Python and passwd; below usr/."""
    files, libraries = {}, set()
    for program in PROGRAMS:
        path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert path, program
        directory = "sbin" if program in {"ldconfig", "start-stop-daemon", "groupadd", "useradd"} else "bin"  # fmt: skip
        files[f"usr/{directory}/{program}"] = (Path(path).resolve().read_bytes(), 0o755)
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        libraries |= set(re.findall(r"(/\S+) \(0x", said))
    for library in libraries:
        where = f"usr/{library.lstrip('/')}" if not library.startswith("/usr/") else library[1:]
        files[where] = (Path(library).read_bytes(), 0o755)
    for name, text in ETC.items():
        files[f"etc/{name}"] = (text.encode(), 0o640 if "shadow" in name else 0o644)
    for name in ("usr/bin/python3", "usr/bin/passwd"):
        files[name] = (b"#!/bin/sh\nexit 0\n", 0o755)
    for directory in (
        "tmp",
        "var/log",
        "var/tmp",
        "proc",
        "sys",
        "dev",
        "run",
        "boot",
        "etc/ssh",
        "home",
        "opt",
        "srv",
    ):
        files[directory] = (None, 0o755)
    files["root"] = (None, 0o700)
    return files


def kernel_files():
    """What `toy_root.root_tar` has: a kernel, its modules, a busybox."""
    modules = f"usr/lib/modules/{RELEASE}"
    return {
        f"boot/vmlinuz-{RELEASE}": (bz_image(lz4_legacy(KERNEL), len(KERNEL)), 0o644),
        "usr/bin/busybox": (b"static busybox", 0o755),
        f"{modules}/modules.dep": (b"kernel/b.ko:\n", 0o644),
        f"{modules}/modules.builtin": (b"kernel/fs/ext4/ext4.ko\n", 0o644),
        f"{modules}/kernel/b.ko": (b"b" * 9, 0o644),
    }


class ToyArchive:
    """The archive in the directory ``root``: suite ``toy``, component ``main``."""

    def __init__(self, root):
        self.root = Path(root)
        self.pool = self.root / "pool"
        self.pool.mkdir(parents=True)
        self.stanzas = {}
        links = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]  # fmt: skip
        self.add("toybase", "1", base_files(), fields="Essential: yes\nPriority: required\n", links=links)  # fmt: skip
        self.add("toykernel", "6.1", kernel_files())
        self.add("sudo", "1.9", {"etc/sudoers": (b"@includedir /etc/sudoers.d\n", 0o440), "etc/sudoers.d/README": (b"", 0o440)})  # fmt: skip
        for number in range(4):
            self.add(f"toy{number}", f"1:{number}.0", {f"usr/share/toy/{number}": (os.urandom(1 << 18), 0o644)})  # fmt: skip
        self.publish()

    def add(self, name, version, files, *, fields="", links=()):
        """Put a package into the pool; `publish` makes it known."""
        control, data = deb(name, version, files, fields=fields, links=links)
        path = self.pool / f"{name}.deb"
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self.stanzas[name] = (
            f"{control}Filename: pool/{path.name}\nSize: {len(data)}\nSHA256: {digest}\n"
        )

    def publish(self):
        """Write the indices."""
        where = self.root / "dists" / "toy" / "main" / "binary-amd64"
        where.mkdir(parents=True, exist_ok=True)
        packages = "\n".join(self.stanzas[name] for name in sorted(self.stanzas)).encode()
        (where / "Packages").write_bytes(packages)
        digest = hashlib.sha256(packages).hexdigest()
        self.release = self.root / "dists" / "toy" / "Release"
        self.release.write_text(
            "Suite: toy\nCodename: toy\nArchitectures: amd64\nComponents: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
            f"SHA256:\n {digest} {len(packages)} main/binary-amd64/Packages\n"
        )

    def sign(self, home):
        """Sign the release with a new key of its own; the keyring."""
        home.mkdir(mode=0o700)
        gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]  # fmt: skip
        subprocess.run([*gpg, "--quick-generate-key", "toy@example.org", "ed25519", "sign", "never"], check=True, capture_output=True)  # fmt: skip
        keyring = home / "toy.gpg"
        subprocess.run([*gpg, "--export", "--output", keyring], check=True, capture_output=True)
        subprocess.run([*gpg, "--yes", "--clearsign", "--output", self.release.with_name("InRelease"), self.release], check=True, capture_output=True)  # fmt: skip
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)  # fmt: skip
        keyring.chmod(0o644)
        return keyring


class Mirror:
    """A mirror of an archive on loopback. ``asked`` are the paths it was asked for; ``budget`` packages' bytes it gives before it is down;
    ``damaged`` are names of packages that it changes on the way; ``slow_s`` is how long it takes over each.
    """

    def __init__(self, root):
        self.asked, self.budget, self.damaged, self.slow_s = [], None, set(), 0.0
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args):
                super().__init__(*args, directory=str(root))

            def log_message(self, *args):
                pass

            def do_GET(self):
                mirror.asked.append(self.path)
                path = Path(root) / self.path.lstrip("/")
                if path.suffix != ".deb" or not path.is_file():
                    super().do_GET()
                    return
                mirror.serve(self, path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def serve(self, request, path):
        """One package, as far as the budget goes."""
        time.sleep(self.slow_s)
        data = path.read_bytes()
        if path.stem in self.damaged:
            data = data[:-4] + b"evil"
        with contextlib.suppress(OSError):
            request.send_response(200)
            request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            if self.budget is not None:
                part, self.budget = data[: self.budget], max(0, self.budget - len(data))
                if len(part) < len(data):
                    request.wfile.write(part)
                    request.close_connection = True
                    self.server.socket.close()  # nobody else is answered
                    threading.Thread(target=self.server.shutdown).start()
                    return
            request.wfile.write(data)

    @property
    def debs(self):
        """Packages that were asked for."""
        return sorted(Path(path).stem for path in self.asked if path.endswith(".deb"))

    def line(self, options="trusted=yes"):
        """The line of sources.list."""
        shown = f"[{options}] " if options else ""
        return f"deb {shown}http://127.0.0.1:{self.server.server_address[1]} toy main"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})  # fmt: skip
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
