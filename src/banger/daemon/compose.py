"""The only place that knows every class: one daemon's parts, joined."""

from __future__ import annotations

import asyncio
import functools
import logging
import os

from banger import __version__
from banger.bundle.locate import find_binaries
from banger.daemon.names import flooded, peers
from banger.daemon.service import Service
from banger.engine.backends import Backends
from banger.engine.context import Context
from banger.engine.engine import Engine
from banger.engine.image_work import ImageWork
from banger.engine.machine import Places
from banger.engine.operations import Board
from banger.guest.connection import connect_guest
from banger.guest.identity import IdentityStore
from banger.host.config import Config
from banger.host.confine import Policy
from banger.images.catalog import ImageCatalog
from banger.model import clock
from banger.model.machine import Timeouts, VmPaths
from banger.network.bridge import BridgeNetwork
from banger.network.forward import Relays
from banger.network.modes import DaemonNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
from banger.storage.disks import DiskStorage
from banger.storage.snapshots.client import snapshots_of
from banger.store.store import Store
from banger.vmm.console import printable_tail
from banger.vmm.firecracker.backend import FirecrackerVmm
from banger.vmm.qemu.backend import QemuVmm

log = logging.getLogger(__name__)
TAIL_LINES = 20


def _console_tail(paths: VmPaths) -> str:
    return printable_tail(paths.console_log, TAIL_LINES)


def compose(config: Config) -> Service:
    """The service of a daemon; opens the store, touches nothing else of the host yet."""
    state_dir, runtime_dir = config.state_dir, config.runtime_dir
    store = Store(config.database_path)
    policy = Policy(config.confine)
    vmm = QemuVmm(accel=config.accel, program=config.qemu_path, policy=policy)
    firecracker = FirecrackerVmm(
        functools.partial(find_binaries, config, warn=log.warning), policy=policy
    )
    uplinks = HostUplinks(
        config.helper_socket,
        UplinkService(config.helper_state_dir, SlotPlan(config.bridge_prefix)),
    )
    network = DaemonNetwork(
        UserNetwork(runtime_dir, state_dir, uplink=config.uplink, pool=config.tap_pool_size),
        BridgeNetwork(runtime_dir, state_dir, uplinks, pool=config.tap_pool_size),
        uplinks,
    )
    context = Context(
        store=store,
        board=Board(store),
        vmms=Backends([firecracker, vmm]),
        storage=DiskStorage(config.storage, snapshots_of(config.helper_socket)),
        network=network,
        relays=Relays(),
        images=ImageCatalog(
            config.images_dir,
            state_dir / "logs",
            mirror=config.mirror,
            void_mirror=config.void_mirror,
            agent=config.agent_path,
            cache_dir=state_dir / "cache",
        ),
        identity=IdentityStore(state_dir),
        guests=connect_guest,
        console_tail=_console_tail,
        places=Places(state_dir, runtime_dir),
        boot_slots=asyncio.Semaphore(config.max_parallel_boots or os.cpu_count() or 1),
        questions=asyncio.Semaphore(max(2, os.cpu_count() or 1)),
        timeouts=Timeouts(ready_s=config.ready_timeout_s),
    )
    engine = Engine(context)
    network.answer_names(functools.partial(peers, engine), functools.partial(flooded, engine))
    service = Service(
        engine=engine,
        image_work=ImageWork(engine),
        started_at=clock.now(),
        version=__version__,
        state_dir=str(state_dir),
        runtime_dir=str(runtime_dir),
        accel=vmm.accel,
        max_console_bytes=config.console_log_max_bytes,
        default_image=config.default_image,
    )
    if store.kept_aside is not None:
        service.warnings.append(
            f"the database was damaged and is kept as {store.kept_aside}; VMs were recovered from their directories"
        )
    return service
