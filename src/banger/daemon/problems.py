"""Exceptions as RFC 9457 problems: every answer that is not a success is an `api.schema.Error`."""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ExceptionHandlersMap

from banger.api import schema
from banger.daemon.service import describe
from banger.model.errors import BangerError

log = logging.getLogger(__name__)
PROBLEM: Final = "application/problem+json"
_CODES: Final = {
    400: "invalid",
    404: "not-found",
    405: "invalid",
    409: "refused",
    413: "invalid",
    415: "invalid",
}


def _answer(
    error: schema.Error, status: int, headers: dict[str, str] | None = None
) -> Response[bytes]:
    return Response(
        msgspec.json.encode(error), status_code=status, media_type=PROBLEM, headers=headers
    )


def _on_banger(_: Request[Any, Any, Any], error: BangerError) -> Response[bytes]:
    return _answer(describe(error), error.http_status)


def _on_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    detail = error.detail
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        detail = "\n".join(
            f"{item.get('key', '')}: {item.get('message', '')}".strip(": ")
            for item in error.extra
            if isinstance(item, dict)
        )
    what = f"{request.method} {request.url.path} was not understood"
    if error.status_code == 404:
        what = f"there is no {request.method} {request.url.path}"
    hint = "see /openapi.json for what the API takes"
    code = _CODES.get(error.status_code, "failure")
    return _answer(
        schema.Error(code, what, detail, hint), error.status_code, dict(error.headers or {})
    )


def _on_other(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request failed", exc_info=error)
    return _answer(describe(error), 500)


HANDLERS: Final[ExceptionHandlersMap] = {
    BangerError: _on_banger,
    HTTPException: _on_http,
    Exception: _on_other,
}


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """For a handler's ``responses``: these statuses answer with a problem."""
    return {
        status: ResponseSpec(
            schema.Error, description="problem", media_type=PROBLEM, generate_examples=False
        )
        for status in statuses
    }


JSON: Final = MediaType.JSON
