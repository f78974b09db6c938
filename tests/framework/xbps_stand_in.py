#!/usr/bin/python3
"""A stand-in for xbps-install and xbps-reconfigure, where the real ones are not on PATH: NOT xbps, and no proof of what xbps does.

It supports exactly the options that banger gives and refuses all others. What it does is written after xbps 0.60.7's sources: resolving
``run_depends``, SHA-256 of packages against the index, unpacking (directories are not taken from packages), the package database and the file lists,
and INSTALL scripts: none where XBPS_TARGET_ARCH is set, else in a chroot if the root has bin/sh, and on the host's shell if not.
"""

import gzip
import hashlib
import io
import os
import plistlib
import re
import sys
import tarfile

PKGVER = re.compile(r"(.+)-([^-]*_[0-9]+)")
META = ("./INSTALL", "./REMOVE", "./props.plist", "./files.plist")


def fail(text, status=1):
    print(text, file=sys.stderr)
    sys.exit(status)


def options(argv, flags, valued):
    given, rest = {}, []
    words = iter(argv)
    for word in words:
        if word in valued:
            given[word] = next(words)
        elif word in flags:
            given[word] = True
        elif word.startswith("-"):
            fail(f"stand-in: option {word} is not one that banger gives")
        else:
            rest.append(word)
    missing = set(valued) - set(given)
    if missing:
        fail(f"stand-in: without {missing}")
    return given, rest


def read_index(repository, arch):
    with gzip.open(os.path.join(repository, f"{arch}-repodata")) as file:
        archive = tarfile.open(fileobj=io.BytesIO(file.read()))  # noqa: SIM115  in memory
        return plistlib.loads(archive.extractfile("index.plist").read())


def resolve(index, names):
    order, state = [], {}

    def visit(name, by):
        name = re.split(r"[<>]", name)[0]
        match = PKGVER.fullmatch(name)
        name = match[1] if match and match[1] in index else name
        if name not in index:
            fail(
                f"Package '{name}' not found in repository pool."
                if not by
                else f"MISSING: {name} for {by}",
                2,
            )
        if name not in state:
            state[name] = True
            for needed in index[name].get("run_depends", []):
                visit(needed, name)
            order.append(name)

    for name in names:
        visit(name, "")
    return order


def install(argv):
    given, names = options(argv, {"-n", "-y", "--reproducible", "-i"}, {"-C", "-R", "-r"})
    arch, root, repository = os.environ["XBPS_TARGET_ARCH"], given["-r"], given["-R"]
    index = read_index(repository, arch)
    order = resolve(index, names)
    if "-n" in given:
        for name in order:
            entry = index[name]
            print(
                entry["pkgver"],
                "install",
                entry["architecture"],
                repository,
                entry["installed_size"],
                0,
            )
        return
    database = {}
    os.makedirs(f"{root}/var/db/xbps", exist_ok=True)
    paths = {
        name: os.path.join(
            repository, f"{index[name]['pkgver']}.{index[name]['architecture']}.xbps"
        )
        for name in order
    }
    for name, path in paths.items():
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != index[name]["filename-sha256"]:
                fail(f"{name}: checksum does not match")
    check_conflicts(paths)
    os.umask(0o022)
    for name in order:
        lists, script = unpack(paths[name], root)
        props = {
            key: value for key, value in index[name].items() if not key.startswith("filename-")
        }
        if plistlib.loads(lists):
            with open(f"{root}/var/db/xbps/.{name}-files.plist", "wb") as file:
                file.write(lists)
            props["metafile-sha256"] = hashlib.sha256(lists).hexdigest()
        if script:
            props["install-script"] = script
        database[name] = {**props, "state": "installed", "automatic-install": name not in names}
        print(f"{index[name]['pkgver']}: installed successfully.")
    write_database(root, database)


def check_conflicts(paths):
    """No two packages may bring one file."""
    owners = {}
    for name, path in paths.items():
        with tarfile.open(path) as archive:
            for member in archive:
                if (
                    member.name not in META
                    and not member.isdir()
                    and owners.setdefault(member.name, name) != name
                ):
                    fail(
                        f"{name}: file `{member.name[1:]}' already installed by package {owners[member.name]}."
                    )


def unpack(path, root):
    meta = {}
    with tarfile.open(path) as archive:
        archive.extraction_filter = lambda member, _: member  # as older Pythons do
        for member in archive:
            if member.name in META:
                meta[member.name] = archive.extractfile(member).read()
            elif not member.isdir():
                if not member.name.startswith("./") or ".." in member.name.split("/"):
                    fail(f"{path}: {member.name}")
                archive.extract(member, root)
    return meta["./files.plist"], meta.get("./INSTALL", b"")


def database_path(root):
    return f"{root}/var/db/xbps/pkgdb-0.38.plist"


def write_database(root, database):
    with open(database_path(root), "wb") as file:
        plistlib.dump(database, file)


def reconfigure(argv):
    given, names = options(argv, {"-f", "-fa"}, {"-r", "-C"})
    if "XBPS_TARGET_ARCH" in os.environ:
        fail("stand-in: it would run no script")
    root = given["-r"]
    with open(database_path(root), "rb") as file:
        database = plistlib.load(file)
    for name in sorted(database) if "-fa" in given else names:
        entry = database[name]
        if entry.get("install-script") and run_script(root, entry) != 0:
            fail(f"{entry['pkgver']}: [configure] INSTALL script failed to execute the post ACTION")
        entry["state"] = "installed"
        write_database(root, database)
        print(f"{entry['pkgver']}: configured successfully.")


def run_script(root, entry):
    name, version = PKGVER.fullmatch(entry["pkgver"]).groups()
    os.chdir(root)
    with open(".xbps-script", "wb") as file:
        file.write(entry["install-script"])
    os.chmod(".xbps-script", 0o750)
    try:
        child = os.fork()
        if child == 0:
            try:
                if os.access("bin/sh", os.X_OK):
                    os.chroot(root)
                    os.chdir("/")
                os.execv(
                    "/bin/sh",
                    ["/bin/sh", ".xbps-script", "post", name, version, "no", "no", "x86_64"],
                )
            finally:
                os._exit(8)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.unlink(".xbps-script")


if __name__ == "__main__":
    {"xbps-install": install, "xbps-reconfigure": reconfigure}[os.path.basename(sys.argv[0])](
        sys.argv[1:]
    )
