"""``banger image``: what VMs are made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from banger.api import routes
from banger.cli import params
from banger.cli.commands.vm_look import age
from banger.cli.lazy import Entry, LazyGroup
from banger.cli.output import data, errors
from banger.cli.output.data import Json
from banger.cli.output.text import dash
from banger.cli.session import Session, pass_session
from banger.model.errors import BangerError
from banger.model.units import format_size

if TYPE_CHECKING:
    from banger.api.schema import Operation

_FILE = click.Path()
NO_IMAGES = "no images yet; build one: banger image build"


_C = "banger.cli.commands.image"
_T = "banger.cli.commands.image_transfer"
_TABLE: dict[str, Entry] = {
    "list": Entry(f"{_C}:list_images", "List images."),
    "show": Entry(f"{_C}:show", "Show one image."),
    "build": Entry(f"{_C}:build", "Build an image."),
    "lock": Entry("banger.cli.commands.image_lock:lock", "Pin what a Void image is built from."),
    "register": Entry(f"{_C}:register", "Make an image out of files that you have."),
    "sbom": Entry("banger.cli.commands.image_look:sbom", "Print an image's inventory (SPDX)."),
    "diff": Entry("banger.cli.commands.image_look:diff", "Show how two images differ."),
    "promote": Entry(
        "banger.cli.commands.image_promote:promote", "Make an image out of a stopped VM."
    ),
    "import": Entry(
        f"{_T}:import_image", "Make an image out of a container image or an exported one."
    ),
    "export": Entry(f"{_T}:export_image", "Write an image to a file."),
    "delete": Entry(f"{_C}:delete", "Delete images that no VM uses."),
    "ls": Entry(f"{_C}:list_images", "Alias of: list.", alias=True),
    "rm": Entry(f"{_C}:delete", "Alias of: delete.", alias=True),
}


@click.group(cls=LazyGroup, lazy=_TABLE)
def image() -> None:
    """Build and manage images."""


def _row(item: Json) -> Sequence[str]:
    return (
        item["name"],
        item["id"],
        f"{item['distribution']} {item['release']}",
        item["kernel_release"],
        format_size(item["disk_bytes"]),
        format_size(item["allocated_bytes"]),
        age(item["created_at"]),
        dash(" ".join(item["used_by"])),
    )


@click.command("list")
@data.format_option
@pass_session
def list_images(session: Session, *, output: str) -> None:
    """List images, oldest first."""
    data.show_list(
        session.transport.fetch(routes.IMAGES_LIST),
        output,
        headings=("NAME", "ID", "SYSTEM", "KERNEL", "DISK", "ON DISK", "AGE", "USED BY"),
        row=_row,
        empty=NO_IMAGES,
    )


def _pairs(item: Json) -> list[tuple[str, object]]:
    services = ", ".join(f"{s['name']} {s['port']}" for s in item["services"])
    return [
        ("name", item["name"]),
        ("id", item["id"]),
        ("system", f"{item['distribution']} {item['release']} {item['architecture']}"),
        ("kernel", item["kernel_release"]),
        ("created", item["created_at"]),
        ("disk", format_size(item["disk_bytes"])),
        ("on disk", format_size(item["allocated_bytes"])),
        ("services", services),
        ("packages", len(item["packages"])),
        ("used by", " ".join(item["used_by"])),
        ("work seed", item["seed"]),
        ("parent", item["parent"]),
        *(("history", _happened(one)) for one in item["history"]),
    ]


def _happened(one: Json) -> str:
    parts = [one["at"], one["action"]]
    parts += [f"from image {one['parent']}"] if one["parent"] else []
    parts += [f"(VM {one['vm']})"] if one["vm"] else []
    return " ".join(parts)


@click.command()
@click.argument("name", type=params.IMAGE)
@data.format_option
@pass_session
def show(session: Session, *, name: str, output: str) -> None:
    """Show one image; its packages are in the JSON format."""
    print_image(session, name, output)


def print_image(session: Session, ref: str, output: str) -> None:
    """Print one image, asked for by name or id."""
    item = session.transport.fetch(routes.IMAGE_SHOW, {"ref": ref})
    data.show_one(item, output, pairs=_pairs, name=item["name"])


@click.command()
@click.argument("recipe", default="debian")
@click.option(
    "--name", type=params.Name("image"), help="Name of the image.  [default: the recipe's]"
)
@click.option("--force", is_flag=True, help="Build even if it would come out the same.")
@click.option("--explain", is_flag=True, help="Print what would be done and run; build nothing.")
@click.option("--no-wait", is_flag=True, help="Print the operation's id and return at once.")
@data.format_option
@pass_session
def build(
    session: Session,
    *,
    recipe: str,
    name: str | None,
    force: bool,
    explain: bool,
    no_wait: bool,
    output: str,
) -> None:
    """Build an image from RECIPE: a name that banger knows (debian, void), or the path of a recipe file."""
    from banger.api import schema  # noqa: PLC0415  the other commands of this group do without

    wish = schema.ImageBuild(recipe=absolute_recipe(recipe), name=name, force=force)
    if explain:
        from banger.cli.commands.image_look import print_plan  # noqa: PLC0415  as above

        print_plan(session.client.plan_image(wish), output)
        return
    finish(session, session.client.build_image(wish), output, no_wait=no_wait)


def finish(session: Session, operation: Operation, output: str, *, no_wait: bool) -> None:
    """Follow ``operation`` and print its image, or print what it is called."""
    from banger.cli.commands.vm_make import print_operation  # noqa: PLC0415  as above
    from banger.cli.output import progress  # noqa: PLC0415  as above

    if no_wait:
        print_operation(operation, output)
        return
    final = progress.watch(session.client, operation)
    print_image(session, final.target, output)


def absolute_recipe(recipe: str) -> str:
    """A path made absolute, as the daemon is elsewhere; a name as it is."""
    return os.path.abspath(recipe) if "/" in recipe or recipe.endswith(".toml") else recipe  # noqa: PTH100  no symlinks resolved


@click.command()
@click.option("--name", type=params.Name("image"), required=True, help="Name of the image.")
@click.option(
    "--from", "base", type=params.IMAGE, help="An image that gives what is not given here."
)
@click.option(
    "--kernel-from",
    type=params.IMAGE,
    help="An image that gives its boot stack alone, for --rootfs.",
)
@click.option(
    "--rootfs",
    type=_FILE,
    help="Root file system: an ext4, a qcow2, a tar, or an OCI layout. What a guest needs is added.",
)
@click.option("--ref", help="Which image of an OCI layout that holds several.")
@click.option(
    "--start-command", is_flag=True, help="Run a container image's own command as a service."
)
@click.option("--kernel", type=_FILE, help="Kernel: a bzImage (vmlinuz) or an ELF with a PVH note.")
@click.option("--initramfs", type=_FILE, help="Initramfs of your own, for --kernel.")
@click.option(
    "--modules",
    type=_FILE,
    help="Modules of --kernel, for banger's own initramfs: lib/modules/RELEASE, a root or a tar; "
    "or none, if all that a boot needs is built in.",
)
@click.option("--cmdline", help="The image's part of the kernel command line.  [default: rw]")
@click.option(
    "--work-seed", type=_FILE, help="What work disks begin as: a raw ext4.  [default: /root]"
)
@click.option(
    "--service",
    "services",
    type=params.SERVICE,
    multiple=True,
    help="A TCP service that must answer in the guest; repeatable.  [default: the rootfs's]",
)
@click.option("--replace", is_flag=True, help="Take the name from an image that has it.")
@click.option("--no-wait", is_flag=True, help="Print the operation's id and return at once.")
@data.format_option
@pass_session
def register(session: Session, /, *, no_wait: bool, output: str, **given: Any) -> None:  # noqa: ANN401  the options above
    """Make an image out of files that you have; they are copied.

    \b
    banger image register --name mine --from debian --kernel bzImage --modules lib/modules/6.12.1

    A root file system that banger did not build is read, completed with what a guest needs (an init, banger's agent, sshd's settings,
    the modules of --kernel-from), and written anew; nothing in it is run. An initramfs of your own has to do what banger's does: mount /dev/vda, /dev/vdb on its /root, apply the tar in
    /dev/vdc, print "banger: booted" to the console and start init (see docs/explanation/boot.md).
    """  # noqa: D301  \b keeps click from filling the line
    from banger.api import schema  # noqa: PLC0415  the other commands of this group do without

    given["services"] = list(given["services"]) or None
    kernel_from = given.pop("kernel_from")
    if kernel_from is not None:
        if given["base"] is not None:
            raise click.UsageError("--from and --kernel-from are two ways to name the same image.")
        given["base"], given["boot_only"] = kernel_from, True
    for key in ("rootfs", "kernel", "initramfs", "modules", "work_seed"):
        given[key] = _absolute(given[key])
    operation = session.client.register_image(schema.ImageRegister(**given))
    finish(session, operation, output, no_wait=no_wait)


def _absolute(path: str | None) -> str | None:
    """A path as the daemon, which is elsewhere, must be told; `none` is a word."""
    return path if path in {None, "none"} else os.path.abspath(path)  # noqa: PTH100  no symlinks resolved


@click.command()
@click.argument("names", metavar="NAME…", type=params.IMAGE, nargs=-1, required=True)
@click.option("--no-wait", is_flag=True, help="Print operation ids; a deletion is over at once.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "name"]),
    help="Also print the operation.  [default: nothing]",
)
@pass_session
def delete(session: Session, *, names: Sequence[str], no_wait: bool, output: str | None) -> None:
    """Delete images that no VM uses."""
    from banger.cli.commands.vm_make import print_operation  # noqa: PLC0415  as in build

    status = 0
    for name in dict.fromkeys(names):
        try:
            final = session.client.delete_image(name)
        except BangerError as error:
            status = status or errors.show(error)
        else:
            click.echo(f"image {final.target_name} is deleted", err=True)
            if no_wait or output is not None:
                print_operation(final, output or "table")
    if status:
        raise click.exceptions.Exit(status)
