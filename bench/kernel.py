"""A vmlinux out of Debian's vmlinuz, and out of the same kernel in every other compression; and what a known kernel costs.

    python bench/kernel.py [RUNS]

The other compressions are those of the kernel's build, with its options (see COMPRESSORS); zstd at 19, as 22 takes minutes. "known" is
the whole of `place_kernel`, digests included, when another image has the kernel already; "new" the same when none has.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import installation, report, summary

from banger.images.boot_files import known_kernels, place_kernel
from banger.images.catalog import ImageCatalog
from banger.images.kernel import extract_vmlinux
from tests.framework.toy_root import bz_image

COMPRESSORS = {
    "gzip": "gzip -n -9",
    "bzip2": "bzip2 -9",
    "lzma": "lzma -9",
    "xz": "xz --check=crc32 --x86 --lzma2=dict=32MiB",
    "lzo": "lzop -9",
    "lz4": "lz4 -l -9",
    "zstd": "zstd -19",
}


def timed(function):
    """Milliseconds of one call."""
    began = time.monotonic()
    function()
    return (time.monotonic() - began) * 1000


def pack(name, vmlinux):
    """A bzImage around ``vmlinux``."""
    argv = [*COMPRESSORS[name].split(), "-c"]
    packed = subprocess.run(argv, input=vmlinux, capture_output=True, check=True).stdout
    return bz_image(packed, None if name == "gzip" else len(vmlinux))


def place(vmlinuz, known, where):
    """Milliseconds to make the kernel files of an image in a directory beside the others."""
    work = Path(tempfile.mkdtemp(prefix=".bench-", dir=where))
    (work / "vmlinuz").write_bytes(vmlinuz)
    try:
        return timed(lambda: place_kernel(work, known))
    finally:
        shutil.rmtree(work)


def main(runs):
    """All of it, in turns."""
    banger = installation()
    try:
        catalog = ImageCatalog(banger.state / "images", banger.state)
        image = catalog.get("debian")
        directory = (banger.state / "images" / image.id).resolve()
        vmlinuz, vmlinux = ((directory / name).read_bytes() for name in ("vmlinuz", "vmlinux"))
        kernels = {"debian": vmlinuz, **{name: pack(name, vmlinux) for name in COMPRESSORS}}
        known = known_kernels([(image, directory)])
        times = {name: [] for name in kernels}
        placed = {"new": [], "known": []}
        for _ in range(runs):
            for name, kernel in kernels.items():
                times[name].append(timed(lambda kernel=kernel: extract_vmlinux(kernel)))
            placed["new"].append(place(vmlinuz, {}, directory.parent))
            placed["known"].append(place(vmlinuz, known, directory.parent))
        report(
            "kernel",
            {
                "kernel": {"release": image.kernel_release, "vmlinux_bytes": len(vmlinux), "vmlinuz_bytes": len(vmlinuz)},
                "extract_ms": {name: summary(values) for name, values in times.items()},
                "place_ms": {name: summary(values) for name, values in placed.items()},
            },
        )  # fmt: skip
    finally:
        banger.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
