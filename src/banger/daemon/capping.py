"""Keeps what guests write on this host within bounds, and says of whom it had to be done again and again."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from banger.daemon.service import Service
from banger.engine.machine import Machine
from banger.model.units import format_size
from banger.vmm.console import cap_log

log = logging.getLogger(__name__)
EVERY_S = 5.0
LOOKS = 12
FLOOD_CUTS = 3
"""Of the last `LOOKS`: a guest that writes a hundred lines a second for a minute is one, a chatty boot is not."""


class Capper:
    """Looks at the consoles and VMM logs of running VMs; `look` is one look at all of them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._cuts: dict[str, deque[bool]] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.look()

    def look(self) -> None:
        """Cut what has outgrown its bounds."""
        running = [one for one in self._service.engine.machines() if one.vmm is not None]
        self._cuts = {one.id: self._cuts.get(one.id, deque(maxlen=LOOKS)) for one in running}
        for machine in running:
            self._look_at(machine)

    def _look_at(self, machine: Machine) -> None:
        most = self._service.max_console_bytes
        cut = False
        for path in (machine.paths.console_log, machine.paths.vmm_log):
            try:
                cut = cap_log(path, most) or cut
            except Exception:  # of one log: the others are capped all the same
                log.exception("log %s could not be capped", path)
        cuts = self._cuts[machine.id]
        cuts.append(cut)
        if sum(cuts) >= FLOOD_CUTS:
            machine.note("console", f"its guest flooded its console: of that the newest {format_size(most)} are kept")  # fmt: skip
