"""Container images, small: layers out of words, in a ``docker save`` archive or an OCI layout, as they should be or not."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path


def member(name, data=None, **more):
    """A tar member and its data: a file if ``data`` is bytes, else what ``type`` says (a directory)."""
    info = tarfile.TarInfo(name)
    info.type = more.pop("type", tarfile.DIRTYPE if data is None else tarfile.REGTYPE)
    info.mode = more.pop("mode", 0o755 if data is None else 0o644)
    info.size = len(data or b"")
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def symlink(name, target):
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name, target):
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(members, *, form=tarfile.PAX_FORMAT):
    """A tar of `member`s as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, None if data is None else io.BytesIO(data))
    return buffer.getvalue()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def config(layers, **run):
    """The configuration of an image of plain ``layers``."""
    content = {
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}" for layer in layers]},
    }
    return json.dumps(content).encode()


def docker_save(path, layers, *, tag="toy:latest", change=lambda files: files, **run):
    """What docker save wrote before version 25; ``change`` may spoil the files by name."""
    made = config(layers, **run)
    files = {f"{digest(made)}.json": made}
    for number, layer in enumerate(layers):
        files[f"{number:064x}/layer.tar"] = layer
    saved = [
        {
            "Config": f"{digest(made)}.json",
            "RepoTags": [tag],
            "Layers": [name for name in files if "/" in name],
        }
    ]
    files["manifest.json"] = json.dumps(saved).encode()
    return write_tar(path, change(files))


def write_tar(path, files):
    """A tar file with these files by name."""
    Path(path).write_bytes(tar(member(name, data) for name, data in files.items()))
    return path


def layout_files(layers, *, tag="toy", pack=gzip.compress, platform=("linux", "amd64"), **run):
    """The files of an OCI layout by name."""
    packed = [pack(layer) for layer in layers]
    made = config(layers, **run)
    files = {}

    def put(data, kind):
        files[f"blobs/sha256/{digest(data)}"] = data
        return {"mediaType": kind, "digest": f"sha256:{digest(data)}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "config": put(made, "application/vnd.oci.image.config.v1+json"),
        "layers": [put(data, "application/vnd.oci.image.layer.v1.tar") for data in packed],
    }
    one = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    one["platform"] = {"os": platform[0], "architecture": platform[1]}
    one["annotations"] = {"org.opencontainers.image.ref.name": tag}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [one]}).encode()
    return files


def write_layout(directory, files):
    """An OCI layout directory."""
    for name, data in files.items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory
