"""An image build as it would be run: the very commands that `banger.images.build` runs, in a directory that is not made."""

from __future__ import annotations

from pathlib import Path

from banger.images.build import Build, inputs_digest, mirrors_of
from banger.images.distributions import distribution
from banger.images.downloads import Downloads
from banger.images.ext4 import EPOCH_S
from banger.images.recipe import LoadedRecipe
from banger.model.image_plan import ImagePlan, PlannedStage
from banger.model.units import format_size


def explain_build(build: Build, up_to_date: str) -> ImagePlan:
    """The plan of ``build``; ``up_to_date`` is the image that makes it needless, if there is one."""
    loaded, recipe = build.loaded, build.loaded.recipe
    cache = Downloads(build.downloads) if build.downloads is not None else None
    return ImagePlan(
        image=build.name,
        recipe=build.ref,
        system=f"{recipe.distribution} {recipe.release} {recipe.architecture}",
        inputs_digest=inputs_digest(loaded, build.mirror, build.agent),
        up_to_date=up_to_date,
        mirrors=mirrors_of(loaded, build.mirror),
        packages=tuple(loaded.packages),
        users=tuple(user.name for user in recipe.users),
        files={file.path: file.digest for file in loaded.files},
        hooks={hook.label: hook.digest for hook in loaded.hooks},
        services=tuple(f"{service.name} {service.port}" for service in recipe.services),
        disk_bytes=loaded.disk_bytes,
        work_seed_bytes=loaded.work_seed_bytes,
        cached_files=cache.count() if cache is not None else 0,
        cached_bytes=cache.size_bytes() if cache is not None else 0,
        stages=_stages(build),
    )


def _stages(build: Build) -> tuple[PlannedStage, ...]:
    """In the order of `Build.run`; a test compares the commands with those that a build runs."""
    loaded: LoadedRecipe = build.loaded
    made = distribution(loaded.recipe.distribution)
    return (
        PlannedStage("resolve", "compare the inputs with the image's"),
        *_tools(loaded),
        PlannedStage(
            "packages",
            f"{len(loaded.packages)} packages and what they need",
            tuple(command.argv for command in made.commands(build.job)),
        ),
        PlannedStage(
            "rootfs",
            f"{format_size(loaded.disk_bytes)}, ext4",
            tuple(c.argv for c in (build.unpacking, *build.root_commands)),
        ),
        PlannedStage("kernel", "vmlinux out of vmlinuz"),
        PlannedStage(
            "initramfs", f"for {len(loaded.recipe.kernel_modules)} modules and what they need"
        ),
        PlannedStage(
            "seed",
            format_size(loaded.work_seed_bytes),
            tuple(command.argv for command in build.seed_commands),
        ),
        PlannedStage("seal", f"digests, inventories, times of {EPOCH_S}"),
    )


def _tools(loaded: LoadedRecipe) -> tuple[PlannedStage, ...]:
    tools = loaded.recipe.tools
    said = ", ".join(f"{tool.name} {tool.version}" for tool in tools)
    return (PlannedStage("tools", said),) if tools else ()


def not_made(images_dir: Path) -> Path:
    """Stands for the directory of a build in a plan."""
    return images_dir / ".build-XXXXXXXX"
