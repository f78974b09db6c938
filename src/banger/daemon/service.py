"""What the handlers work with: the engine, its ports, and a few facts about this daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from banger.api import schema
from banger.daemon.metrics import Metrics
from banger.engine import views
from banger.engine.audit import Audit
from banger.engine.context import Context
from banger.engine.engine import Engine
from banger.engine.guest_ports import Guest
from banger.engine.image_work import ImageWork
from banger.engine.machine import Machine
from banger.model.errors import BangerError, NotFoundError, RefusedError
from banger.model.manifest import ImageManifest
from banger.model.state import not_running


@dataclass(slots=True)
class Service:
    """One daemon. ``warnings`` are sentences that every user of it should read (shown by ``daemon status``)."""

    engine: Engine
    image_work: ImageWork
    started_at: str
    version: str
    state_dir: str
    runtime_dir: str
    accel: str
    max_console_bytes: int
    warnings: list[str] = field(default_factory=list)
    default_image: str = "debian"
    metrics: Metrics = field(init=False)
    audit: Audit = field(init=False)

    def __post_init__(self) -> None:
        """Count from now on."""
        self.metrics = Metrics(self.version)
        self.audit = Audit(self.engine)
        self.context.board.hub.listen(self.metrics.note)

    @property
    def context(self) -> Context:
        """The engine's ports."""
        return self.engine.context

    def vm_view(self, machine: Machine) -> schema.Vm:
        """A VM for the wire; an image that was deleted by hand is shown by its id."""
        return _vm(machine, self._images())

    def vm_views(self) -> list[schema.Vm]:
        """All VMs."""
        images = self._images()
        return [_vm(machine, images) for machine in self.engine.machines()]

    def _images(self) -> dict[str, ImageManifest]:
        return {manifest.id: manifest for manifest in self.context.images.list()}

    def image_view(self, manifest: ImageManifest) -> schema.Image:
        """An image for the wire."""
        users = [machine.name for machine in self.engine.using_image(manifest.id)]
        images = self.context.images
        seed = images.seed_word(manifest)
        return views.image(manifest, images.allocated_bytes(manifest.id), users, seed)

    def image(self, ref: str) -> ImageManifest:
        """The image of this name or id; RefusedError for one that is being taken in just now."""
        try:
            return self.context.images.get(ref)
        except NotFoundError:
            run = self.image_work.coming(ref)
            if run is None:
                raise
            raise RefusedError(
                f"image {ref} of the bundle is still being taken in",
                hint=f"banger op wait {run.id}",
            ) from None

    def guest(self, ref: str) -> Guest:
        """The guest of a VM that runs; RefusedError for one that does not."""
        machine = self.engine.resolve(ref)
        if machine.guest is None:
            raise not_running(machine.name, machine.state)
        return machine.guest


def _vm(machine: Machine, images: Mapping[str, ImageManifest]) -> schema.Vm:
    image = images.get(machine.record.image_id)
    name = image.name if image else machine.record.image_id
    services = [(s.name, s.port) for s in image.services] if image else []
    return views.vm(machine, name, services)


def describe(error: BaseException) -> schema.Error:
    """An exception for the wire."""
    if isinstance(error, BangerError):
        return schema.Error(error.code, error.what, error.detail, error.hint)
    return schema.Error(
        "failure", f"internal error: {type(error).__name__}", str(error), "see: banger daemon logs"
    )
