"""What banger says to Firecracker's API is what the API's own description knows, and what the reference says."""

import subprocess
import sys
import typing
from pathlib import Path

import msgspec
import pytest

from banger.vmm.firecracker import bodies, versions
from banger.vmm.firecracker.bodies import (
    BODIES,
    InstanceInfo,
    MmdsContents,
    Part,
    documented,
    fitting,
)
from tests.framework.firecracker import official
from tests.unit.vmm import test_firecracker_config as launch

ROOT = Path(__file__).parents[3]
KINDS = {int: "integer", str: "string", bool: "boolean"}
SNAPSHOT = bodies.SnapshotLoad(
    snapshot_path="/s",
    mem_backend=bodies.MemoryBackend(backend_type="File", backend_path="/m"),
    resume_vm=True,
    track_dirty_pages=True,
    network_overrides=(bodies.NetworkOverride(iface_id="eth0", host_dev_name="tap5"),),
    vsock_override=bodies.VsockOverride(uds_path="/v"),
    clock_realtime=True,
)
BUCKET = bodies.TokenBucket(size=1 << 20, refill_time=1000)
LIMITER = bodies.RateLimiter(bandwidth=BUCKET, ops=BUCKET)
OTHERS = (
    SNAPSHOT,
    bodies.SnapshotCreate(snapshot_path="/s", mem_file_path="/m", snapshot_type="Full"),
    bodies.Logger(log_path="/l", level="Warning"),
    bodies.Metrics(metrics_path="/m"),
    bodies.MmdsConfig(network_interfaces=("eth0",), version="V2"),
    bodies.Vm(state="Resumed"),
    bodies.Action(action_type="SendCtrlAltDel"),
    bodies.Entropy(rate_limiter=LIMITER),
    MmdsContents({"a": [1, {"b": None}]}),
)


@pytest.fixture(scope="module")
def api():
    answer = official.there()
    if not answer:
        pytest.skip(answer.why)
    return official.read(Path(answer.found))


def test_the_reference_is_what_the_types_say():
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "firecracker_reference.py"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    written = (ROOT / "docs" / "reference" / "firecracker.md").read_text()
    assert written == made, "run: make reference"


def test_the_reference_has_a_value_for_exactly_the_fields_that_a_launch_sets():
    sent = launch.config.build(launch.REQUEST, launch.NEWEST)
    for kind in {type(body) for body in sent}:
        for name, _, notes, _ in documented(kind):
            is_set = any(getattr(body, name) is not None for body in sent if type(body) is kind)
            assert bool(notes["sets"]) == is_set, (kind, name)


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_every_endpoint_and_field_exists_with_its_type(api, kind):
    operation = api.operation(kind.endpoint.method, kind.endpoint.path)
    assert operation is not None
    assert operation.path == kind.endpoint.path
    compare(api.document["definitions"], operation.body["schema"], kind)


def test_the_answer_exists_with_its_types(api):
    answer = api.operation("GET", "/").described["responses"][200]["schema"]
    compare(api.document["definitions"], answer, InstanceInfo, answer=True)


def compare(definitions, schema, kind, *, answer=False):
    """All fields of ``kind`` are described, as what they are; all that must be given have no default."""
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    fields = dict(schema["properties"])
    required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required}
    if not answer:
        assert set(schema.get("required", ())) <= required
    for name, bare, _, _ in documented(kind):
        one_of(definitions, fields[name], bare)


def one_of(definitions, schema, bare):
    parts = [part for part in typing.get_args(bare) if part is not type(None)]
    if isinstance(bare, type) and issubclass(bare, Part):
        compare(definitions, schema, bare)
    elif isinstance(bare, type) and not parts:
        assert schema["type"] == KINDS[bare]
    elif all(isinstance(part, str) for part in parts):
        assert set(parts) <= set(schema["enum"])
    elif Ellipsis in parts:
        assert schema["type"] == "array"
        one_of(definitions, schema["items"], parts[0])
    else:
        one_of(definitions, schema, parts[0])


@pytest.mark.parametrize("version", [(1, 8, 0), (1, 13, 1), (1, 14, 4), (1, 16, 1), (1, 17, 0)])
def test_every_request_of_a_launch_is_by_the_description(api, version):
    for body in launch.config.build(launch.REQUEST, version):
        method, target = body.endpoint.method, body.target
        assert api.check_request(method, target, body.encoded()) == [], (method, target)


@pytest.mark.parametrize("message", OTHERS, ids=lambda message: type(message).__name__)
def test_every_other_request_is_by_the_description(api, message):
    assert api.check_request(message.endpoint.method, message.target, message.encoded()) == []


def test_what_a_release_does_not_know_is_left_out_at_every_depth():
    assert fitting(SNAPSHOT, (1, 11, 0)) == bodies.SnapshotLoad(
        snapshot_path="/s", mem_backend=SNAPSHOT.mem_backend, resume_vm=True
    )
    assert fitting(SNAPSHOT, (1, 17, 0)) == SNAPSHOT
    assert fitting(bodies.Serial(rate_limiter=BUCKET), (1, 15, 0)) is None
    assert fitting(bodies.Entropy(), (1, 8, 0)) == bodies.Entropy()


def test_releases_in_the_types_are_all_readable_and_known_at_the_time():
    for kind in BODIES:
        assert versions.since(kind.endpoint.since) <= (1, 17, 0)
        for _, _, notes, _ in documented(kind):
            assert versions.since(notes["since"]) <= (1, 17, 0)
