"""Requests and answers against Firecracker's own description of its API (Swagger 2.0, ``firecracker-api.yaml``).

The description is not part of this repository: $BANGER_FIRECRACKER_API names it, else it is looked for in ``../shared/reference`` beside
the checkout. `there` says whether it is found, for skips. Stricter than the description: fields that it does not name are refused
everywhere but in the MMDS store. Laxer: Firecracker's answers write null for what is not set; PATCH /machine-config takes a part of
the object although the description requires all of it; a level's letters may have any case, as its text says.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from banger.host.probe import Answer

VARIABLE = "BANGER_FIRECRACKER_API"
BESIDE = Path(__file__).parents[3] / ".." / "shared" / "reference" / "firecracker-api.yaml"
_METHODS = ("get", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path, as described."""

    method: str
    path: str
    described: Mapping[str, Any]

    @property
    def body(self) -> Mapping[str, Any] | None:
        """The body's parameter; None if it takes none."""
        parameters = self.described.get("parameters", ())
        return next((entry for entry in parameters if entry["in"] == "body"), None)


class Official:
    """A description that was read; ``version`` is the release it belongs to."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.version = str(document["info"]["version"])
        self._requests = _definitions(document, nullable=False)
        self._answers = _definitions(document, nullable=True)

    @property
    def operations(self) -> set[tuple[str, str]]:
        """Method and path of all there is."""
        paths = self.document["paths"].items()
        return {(m.upper(), path) for path, methods in paths for m in methods if m in _METHODS}

    def fields(self, definition: str) -> set[str]:
        """The names of an object's fields."""
        return set(self.document["definitions"][definition].get("properties", {}))

    def operation(self, method: str, target: str) -> Operation | None:
        """What a request line asks for; None if it is nothing."""
        for path, methods in self.document["paths"].items():
            pattern = re.sub(r"\\\{[a-z_]+\\\}", "[^/]+", re.escape(path))
            if re.fullmatch(pattern, target) and method.lower() in methods:
                return Operation(method, path, methods[method.lower()])
        return None

    def check_request(self, method: str, target: str, body: bytes) -> list[str]:
        """What is wrong with a request, in sentences; empty if nothing is."""
        operation = self.operation(method, target)
        if operation is None:
            return [f"{method} {target} is no operation of the API"]
        parameter = operation.body
        if parameter is None:
            return [f"{method} {operation.path} takes no body"] if body else []
        if not body:
            return [f"{method} {operation.path} needs a body"] if parameter.get("required") else []
        whole = (method, operation.path) != ("PATCH", "/machine-config")
        return self._check(parameter["schema"], self._requests, body, whole=whole)

    def check_answer(self, method: str, target: str, status: int, body: bytes) -> list[str]:
        """What is wrong with an answer, in sentences; empty if nothing is."""
        operation = self.operation(method, target)
        responses = operation.described["responses"] if operation else {}
        response = responses.get(status, responses.get(str(status), responses.get("default")))
        if response is None:
            return [] if status >= 400 else [f"{method} {target} cannot answer {status}"]
        if "schema" not in response:
            return [f"{method} {target}: {status} has no body"] if body else []
        return self._check(response["schema"], self._answers, body)

    @staticmethod
    def _check(
        schema: Mapping[str, Any], definitions: dict[str, Any], body: bytes, *, whole: bool = True
    ) -> list[str]:
        try:
            value = json.loads(body)
        except ValueError as error:
            return [f"the body is not JSON: {error}"]
        if not whole:
            name = schema["$ref"].rpartition("/")[2]
            schema = {key: v for key, v in definitions[name].items() if key != "required"}
        import jsonschema_rs  # late: the stand-in need not wait for it

        wanted = {**schema, "definitions": definitions}
        found = jsonschema_rs.Draft4Validator(wanted).iter_errors(value)
        return [f"{'.'.join(map(str, error.instance_path)) or 'body'}: {error.message}" for error in found]  # fmt: skip


def _definitions(document: Mapping[str, Any], *, nullable: bool) -> dict[str, Any]:
    return {
        name: _strict(definition, nullable=nullable)
        for name, definition in document["definitions"].items()
    }


def _strict(definition: Mapping[str, Any], *, nullable: bool) -> dict[str, Any]:
    """The definition as a JSON schema that knows no other fields."""
    made = dict(definition)
    if "properties" not in made:
        return made
    required = made.get("required", ())
    made["properties"] = {
        name: {"anyOf": [_scalar(field), {"type": "null"}]} if nullable and name not in required else _scalar(field)
        for name, field in made["properties"].items()
    }  # fmt: skip
    made.setdefault("additionalProperties", False)
    return made


def _scalar(field: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(field)
    if made.get("format", "").startswith("169"):
        made["pattern"] = f"^{made.pop('format')}$"
    if "case-insensitive" in made.get("description", ""):
        words = made.pop("enum")
        made["enum"] = [form for word in words for form in (word, word.lower(), word.upper())]
    return made


def where() -> Path:
    """The description's file, be it there or not."""
    return Path(os.environ.get(VARIABLE) or os.path.normpath(BESIDE))


def there() -> Answer:
    """Whether the description is on this machine."""
    path = where()
    if path.is_file():
        return Answer(ok=True, found=str(path))
    why = f"Firecracker's description of its API is not at {path}"
    return Answer(ok=False, why=why, hint=f"set {VARIABLE} to a firecracker-api.yaml")


@cache
def read(path: Path) -> Official:
    """The description in ``path``."""
    return Official(_yaml(path.read_text()))


def _yaml(text: str) -> Any:
    """YAML whose only booleans are true and false: ``Off`` is a level."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  filled below

    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept = [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
        Loader.yaml_implicit_resolvers[letter] = kept
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), "tf")
    return yaml.load(text, Loader)
