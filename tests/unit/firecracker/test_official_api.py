"""Firecracker's own description of its API: how it judges, and whether the stand-in knows nothing that is not in it."""

import json

import pytest

from tests.framework.firecracker import official, schema
from tests.framework.firecracker.official import Official
from tests.framework.firecracker.routes import ENDPOINTS
from tests.framework.firecracker.shapes import ListOf, OneOf, Struct, Whole

DOCUMENT = """
swagger: "2.0"
info: {version: 1.2.3}
paths:
  /things/{thing_id}:
    put:
      parameters:
        - {name: thing_id, in: path, type: string}
        - {name: body, in: body, required: true, schema: {$ref: "#/definitions/Thing"}}
      responses: {204: {description: done}, default: {schema: {$ref: "#/definitions/Error"}}}
    get:
      responses: {200: {schema: {$ref: "#/definitions/Thing"}}}
definitions:
  Error: {type: object, properties: {fault_message: {type: string}}}
  Thing:
    type: object
    required: [size]
    properties:
      size: {type: integer, minimum: 1, maximum: 32}
      level: {type: string, description: The possible values are case-insensitive., enum: [Error, Off]}
      inner: {$ref: "#/definitions/Inner", description: beside a reference nothing counts}
  Inner: {type: object, properties: {on: {type: boolean}}}
"""


@pytest.fixture
def small():
    return Official(official._yaml(DOCUMENT))


@pytest.fixture(scope="module")
def api():
    answer = official.there()
    if not answer:
        pytest.skip(f"{answer.why}; {answer.hint}")
    return official.read(official.where())


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('{"size": 1, "level": "off", "inner": {"on": true}}', ""),
        ("{}", "required"),
        ('{"size": 0}', "minimum"),
        ('{"size": 33}', "maximum"),
        ('{"size": "1"}', "size"),
        ('{"size": 1, "level": "Loud"}', "level"),
        ('{"size": 1, "sise": 2}', "sise"),
        ('{"size": 1, "inner": {"off": true}}', "inner"),
        ('{"size": 1, "inner": null}', "inner"),
        ("{", "not JSON"),
        ("", "needs a body"),
    ],
)
def test_a_request_is_judged(small, body, wrong):
    found = small.check_request("PUT", "/things/a", body.encode())
    assert bool(found) == bool(wrong), found
    assert wrong in " ".join(found)


def test_an_unknown_operation_is_no_request(small):
    assert small.check_request("PUT", "/things", b"{}") == [
        "PUT /things is no operation of the API"
    ]
    assert small.check_request("PATCH", "/things/a", b"{}")
    assert small.check_request("GET", "/things/a", b"") == []
    assert small.check_request("GET", "/things/a", b"{}") == [
        "GET /things/{thing_id} takes no body"
    ]


@pytest.mark.parametrize(
    ("method", "status", "body", "good"),
    [
        ("PUT", 204, b"", True),
        ("PUT", 204, b"{}", False),
        ("PUT", 200, b"{}", True),  # the default, an Error without a message
        ("PUT", 400, b'{"fault_message": "no"}', True),
        ("PUT", 400, b'{"error": "no"}', False),
        ("GET", 200, b'{"size": 2, "inner": null, "level": null}', True),  # as Firecracker writes what is not set
        ("GET", 200, b'{"size": null}', False),
        ("GET", 201, b'{"size": 2}', False),
    ],
)  # fmt: skip
def test_an_answer_is_judged(small, method, status, body, good):
    found = small.check_answer(method, "/things/a", status, body)
    assert (found == []) == good, found


def test_a_description_that_is_not_there_is_said_clearly(monkeypatch, tmp_path):
    monkeypatch.setenv(official.VARIABLE, str(tmp_path / "no.yaml"))
    answer = official.there()
    assert not answer
    assert str(tmp_path / "no.yaml") in answer.why
    assert official.VARIABLE in answer.hint


def test_every_endpoint_of_the_stand_in_is_official_and_every_official_one_is_known(api):
    known = {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    assert known == api.operations


def structs():
    """All structs that requests are made of, by their official names."""
    found = {}

    def walk(kind):
        if isinstance(kind, ListOf):
            walk(kind.kind)
        if isinstance(kind, Struct) and kind not in found.values():
            found[f"{kind.name}: {kind.defined}"] = kind
            for field in kind.fields:
                walk(field.kind)

    for endpoint in ENDPOINTS:
        walk(endpoint.body)
    walk(schema.CONFIG_FILE)
    return found


@pytest.mark.parametrize("struct", structs().values(), ids=structs().keys())
def test_every_field_of_the_stand_in_is_official_with_its_words(api, struct):
    definition = api.document["definitions"][struct.defined]
    fields = definition["properties"]
    # On x86-64 there are no register modifiers and vCPU features.
    assert {field.name for field in struct.fields} == set(fields) - {
        "reg_modifiers",
        "vcpu_features",
    }
    for field in struct.fields:
        described = fields[field.name]
        if isinstance(field.kind, Whole):
            assert described["type"] == "integer"
        if isinstance(field.kind, OneOf) and "$ref" not in described:
            assert set(field.kind.known((99,))) == set(described["enum"])


@pytest.mark.parametrize("struct", structs().values(), ids=structs().keys())
def test_what_is_required_is_required_on_both_sides(api, struct):
    required = set(api.document["definitions"][struct.defined].get("required", ()))
    ours = {field.name for field in struct.fields if field.required}
    if struct is schema.MACHINE_UPDATE:
        assert ours == set()  # the description has no object of its own for a part
    elif struct in (schema.CONFIG_FILE, schema.HOTPLUG, schema.HOTPLUG_SIZE):
        assert required == set()  # the description does not say what Firecracker demands
    else:
        assert ours == required & {field.name for field in struct.fields}


def test_the_official_words_that_yaml_would_take_for_booleans_are_words(api):
    assert api.check_request("PUT", "/logger", b'{"level": "Off"}') == []
    assert api.check_request("PUT", "/logger", b'{"level": false}')


def test_a_part_of_the_machine_can_be_patched_but_not_put(api):
    assert api.check_request("PATCH", "/machine-config", b'{"vcpu_count": 2}') == []
    assert api.check_request("PUT", "/machine-config", b'{"vcpu_count": 2}')
    assert api.check_request("PATCH", "/machine-config", b'{"cpus": 2}')


def test_the_mmds_store_takes_any_object(api):
    assert api.check_request("PUT", "/mmds", json.dumps({"a": {"b": [1, None]}}).encode()) == []
    assert api.check_request(
        "PUT", "/mmds/config", b'{"network_interfaces": ["a"], "ipv4_address": "10.0.0.1"}'
    )
