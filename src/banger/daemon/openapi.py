"""The OpenAPI document: Litestar's paths with msgspec's schemas, which state every constraint that is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import MutableScopeHeaders
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.routes import HTTPRoute
from litestar.types import Message, Scope

from banger.api import schema
from banger.model.compat import override

_REF = "#/components/schemas/{name}"


def exact(document: Mapping[str, Any]) -> dict[str, Any]:
    """``document`` with the schemas of `banger.api.schema`, and bodies required only where nothing stands for their absence."""
    made: dict[str, Any] = json.loads(json.dumps(document))
    schemas = made["components"]["schemas"]
    structs = [getattr(schema, name) for name in schemas]
    _, exact_schemas = msgspec.json.schema_components(structs, ref_template=_REF)
    schemas.update(exact_schemas)
    for path in made["paths"].values():
        for operation in path.values():
            _optional(operation)
    return made


def _optional(operation: dict[str, Any]) -> None:
    """A body that may be null may be left out."""
    body = operation.get("requestBody", {})
    for content in body.get("content", {}).values():
        if {"type": "null"} in content["schema"].get("oneOf", []):
            body["required"] = False


class ExactJson(JsonRenderPlugin):
    """Serves the document at /openapi.json."""

    @override
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document as JSON."""
        return self.render_json(request, exact(openapi_schema))


async def state_methods(message: Message, scope: Scope) -> None:
    """Put all methods of a path into Allow: Litestar's own answer to OPTIONS forgets those that were added to it last."""
    if message["type"] != "http.response.start" or scope.get("method") != "OPTIONS":
        return
    routes = scope["litestar_app"].routes
    methods = {
        str(method)
        for route in routes
        if isinstance(route, HTTPRoute) and route.path_format == scope.get("path_template")
        for method in route.methods
    }
    MutableScopeHeaders.from_message(message)["Allow"] = ", ".join(sorted(methods))
