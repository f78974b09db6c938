"""/v1/images: what VMs are made from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter

from banger.api import schema
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine import views
from banger.model.manifest import Service as GuestService
from banger.model.registration import Registration
from banger.model.transfer import ImageExport, ImageImport

BUILT_IN = "none"
Ref = Annotated[str, Parameter(description="name, id or unique id prefix", max_length=200)]


def registration(wish: schema.ImageRegister) -> Registration:
    """The wish with its paths and rules checked; InvalidInputError."""

    def path(given: str | None) -> Path | None:
        return None if given is None else Path(given)

    built_in = wish.modules == BUILT_IN
    services = wish.services
    return Registration(
        name=wish.name,
        base=wish.base,
        rootfs=path(wish.rootfs),
        kernel=path(wish.kernel),
        initramfs=path(wish.initramfs),
        modules=None if built_in else path(wish.modules),
        built_in=built_in,
        work_seed=path(wish.work_seed),
        cmdline=wish.cmdline,
        services=None
        if services is None
        else tuple(GuestService(item.name, item.port, item.path) for item in services),
        replace=wish.replace,
        boot_only=wish.boot_only,
        ref=wish.ref,
        start_command=wish.start_command,
    )


def importation(wish: schema.ImageImport) -> ImageImport:
    """The wish with its rules checked; InvalidInputError."""
    services = wish.services
    return ImageImport(
        path=Path(wish.path),
        name=wish.name,
        kernel_from=wish.kernel_from,
        ref=wish.ref,
        start_command=wish.start_command,
        services=None
        if services is None
        else tuple(GuestService(item.name, item.port) for item in services),
        replace=wish.replace,
    )


class ImageController(Controller):
    """Images on this host."""

    path = "/v1/images"
    tags: Sequence[str] | None = ["images"]

    @get("/", summary="List images", operation_id="imageList")
    async def list_images(self, service: NamedDependency[Service]) -> list[schema.Image]:
        """All images, oldest first."""
        return [service.image_view(manifest) for manifest in service.context.images.list()]

    @post(
        "/build",
        status_code=202,
        summary="Build an image",
        operation_id="imageBuild",
        responses=problems(400, 404, 409, 503),
    )
    async def build(
        self, service: NamedDependency[Service], data: JSONBody[schema.ImageBuild | None] = None
    ) -> schema.Operation:
        """Begin image.build; nothing is done if the image would come out the same, unless forced."""
        wish = data or schema.ImageBuild()
        check = service.context.images.check_recipe
        await asyncio.to_thread(check, wish.recipe, name=wish.name)  # it may digest large files
        run = service.image_work.build(wish.recipe, name=wish.name, force=wish.force)
        return views.operation(run.record)

    @post(
        "/register",
        status_code=202,
        summary="Register an image",
        operation_id="imageRegister",
        responses=problems(400, 404, 409, 503),
    )
    async def register(
        self, service: NamedDependency[Service], data: JSONBody[schema.ImageRegister]
    ) -> schema.Operation:
        """Begin image.register: an image out of files on the daemon's host, which are copied."""
        wish = registration(data)
        await service.context.images.check_registration(wish)
        return views.operation(service.image_work.register(wish).record)

    @post(
        "/import",
        status_code=202,
        summary="Import an image",
        operation_id="imageImport",
        responses=problems(400, 404, 409, 503),
    )
    async def import_image(
        self, service: NamedDependency[Service], data: JSONBody[schema.ImageImport]
    ) -> schema.Operation:
        """Begin image.import: an image out of a file or OCI layout on the daemon's host."""
        wish = importation(data)
        name = await service.context.images.check_import(wish)
        return views.operation(service.image_work.import_image(wish, name).record)

    @post(
        "/{ref:str}/export",
        status_code=202,
        summary="Export an image",
        operation_id="imageExport",
        responses=problems(400, 404, 409, 503),
    )
    async def export_image(
        self, service: NamedDependency[Service], ref: Ref, data: JSONBody[schema.ImageExport]
    ) -> schema.Operation:
        """Begin image.export: an image to a file or OCI layout on the daemon's host."""
        wish = ImageExport(ref, Path(data.path), data.format, data.replace)
        manifest = await service.context.images.check_export(wish)
        return views.operation(service.image_work.export_image(wish, manifest.name).record)

    @get(
        "/{ref:str}",
        summary="Show an image",
        operation_id="imageShow",
        responses=problems(400, 404),
    )
    async def show(self, service: NamedDependency[Service], ref: Ref) -> schema.Image:
        """One image."""
        return service.image_view(service.context.images.get(ref))

    @get(
        "/{ref:str}/sbom",
        summary="An image's inventory",
        operation_id="imageSbom",
        responses=problems(400, 404),
    )
    async def sbom(self, service: NamedDependency[Service], ref: Ref) -> dict[str, Any]:
        """SPDX 2.3 in JSON."""
        images = service.context.images
        found: dict[str, Any] = msgspec.json.decode(await images.sbom(images.get(ref).id))
        return found

    @get(
        "/{ref:str}/diff/{other:str}",
        summary="How two images differ",
        operation_id="imageDiff",
        responses=problems(400, 404),
    )
    async def diff(
        self, service: NamedDependency[Service], ref: Ref, other: Ref
    ) -> schema.ImageDiff:
        """What the image ``other`` has otherwise than ``ref``; the files of an image are read when it is first compared, in seconds."""
        images = service.context.images
        found = await images.diff(images.get(ref).id, images.get(other).id)
        return msgspec.convert(found, schema.ImageDiff, from_attributes=True)

    @delete(
        "/{ref:str}",
        status_code=202,
        summary="Delete an image",
        operation_id="imageDelete",
        responses=problems(400, 404, 409),
    )
    async def remove(self, service: NamedDependency[Service], ref: Ref) -> schema.Operation:
        """Delete an image that no VM uses; the operation is over when this answers."""
        return views.operation(await service.image_work.delete(ref))
