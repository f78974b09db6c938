"""/v1/audit: where record and host differ."""

from __future__ import annotations

from litestar import get, post
from litestar.di import NamedDependency

from banger.api import schema
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine import views


@get(
    "/v1/audit",
    summary="What exists without a record, and what is on record and gone",
    operation_id="audit",
    responses=problems(409, 503),
    tags=("daemon",),
)
async def audit(service: NamedDependency[Service]) -> list[schema.Residue]:
    """Nothing is changed, and no guest is asked. What an operation works on is left out."""
    return [views.residue(finding) for finding in await service.audit.look()]


@post(
    "/v1/audit/fix",
    status_code=200,
    summary="Undo what is certainly banger's and unrecorded, and bring records to the truth",
    operation_id="auditFix",
    responses=problems(409, 503),
    tags=("daemon",),
)
async def audit_fix(service: NamedDependency[Service]) -> list[schema.Residue]:
    """What was found and what became of it. What cannot be mended has an error and does not keep the rest."""
    return [views.fixed(item) for item in await service.audit.fix()]


HANDLERS = (audit, audit_fix)
