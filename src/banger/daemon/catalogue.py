"""At the daemon's start: the catalogue of images is brought together with what this banger is, with the bundle and with the configuration."""

from __future__ import annotations

import asyncio
import logging

from banger.bundle.places import default_root
from banger.bundle.prebuilt import prebuilt
from banger.daemon.service import Service
from banger.host.config import Config
from banger.model.errors import BangerError, NotFoundError

log = logging.getLogger(__name__)


async def keep_up(service: Service) -> None:
    """Manifests of older versions are brought up to date; users are told of images that cannot be used."""
    try:
        for sentence in await service.context.images.keep_up():
            log.info("images: %s", sentence)
    except (BangerError, OSError) as error:
        log.warning("images could not be looked through: %s", error)
    service.warnings.extend(
        f"image {one.name or one.id} cannot be used: {one.why}; {one.hint}"
        for one in service.context.images.unusable()
    )


async def take_in_prebuilt(service: Service, config: Config) -> None:
    """Begin to take in the images of the bundle whose names are free, and see whether there is, or will be, the default image."""
    names = {image.name for image in service.context.images.list()}
    root = default_root(config.bundle_dir)
    for image in await asyncio.to_thread(prebuilt, root, log.warning):
        if image.name not in names:
            run = service.image_work.adopt(image.name, image.directory)
            log.info("image %s of the bundle is taken in, operation %s", image.name, run.id)
    said = await default_trouble(service, config.default_image)
    if said:
        log.warning("%s", said)
        service.warnings.append(said)


async def default_trouble(service: Service, name: str) -> str:
    """What is to be said of a default image that is not there; "" if it is, is coming, or only waits to be built on a new host."""
    images = service.context.images
    if service.image_work.coming(name) is not None:
        return ""
    try:
        images.get(name)
        return ""
    except NotFoundError:
        pass
    except BangerError as error:
        return f"the default image {name} cannot be used: {error.what}"
    there = " ".join(image.name for image in images.list())
    try:
        images.check_recipe(name, name=None)
    except BangerError:
        way = f"set default_image to one of: {there}" if there else "banger image build debian"
        return f"the default image {name} is not there, and no recipe is called so; {way}"
    if not there:
        return ""
    return f"the default image {name} is not there (there are: {there}); banger image build {name}"
