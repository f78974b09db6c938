"""The stand-in for Firecracker as banger's backend accepts it: its release says that it needs no KVM."""

from dataclasses import replace

from banger.vmm.firecracker.backend import FirecrackerVmm
from banger.vmm.firecracker.binary import STAND_IN
from tests.framework.firecracker.install import make_firecracker
from tests.framework.firecracker.play import Play

RELEASE = "1.17.0"


def played_firecracker(directory, *, release=RELEASE, **play):
    """The path of a program in ``directory`` that plays ``release``; ``play`` says in which way it fails."""
    played = replace(Play(**play), version=f"{release}-{STAND_IN}")
    return make_firecracker(directory, play=played)


def played_vmm(directory, **play):
    """The backend with such a program."""
    program = played_firecracker(directory, **play)
    return FirecrackerVmm(lambda: program)
