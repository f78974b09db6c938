"""What a log line belongs to: the VM and the operation that the running task works for. The daemon's formatter adds both."""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context
from typing import Final

VM: Final[ContextVar[str]] = ContextVar("vm", default="")
OPERATION: Final[ContextVar[str]] = ContextVar("operation", default="")


def beyond_operation() -> Context:
    """The present context for a task that outlives the operation that begins it."""
    context = copy_context()
    context.run(OPERATION.set, "")
    return context
