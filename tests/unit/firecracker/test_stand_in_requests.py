"""Requests: what the stand-in for Firecracker makes of them, and in whose words it refuses them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.framework.firecracker import jsontext
from tests.framework.firecracker.routes import FaultError, route

NEW = (1, 17)
BODY = "An error occurred when deserializing the json body of a request: "
REFUSED = [
    # The two columns are those that Firecracker's own test suite expects of it.
    ("PUT", "/machine-config", '{"mem_size_mib": 128}', BODY + "missing field `vcpu_count` at line 1 column 21."),
    ("PUT", "/machine-config", '{"vcpu_count": 2}', BODY + "missing field `mem_size_mib` at line 1 column 17."),
    ("PUT", "/machine-config", '{"vcpu_count": 300, "mem_size_mib": 1}', BODY + "invalid value: integer `300`, expected u8 at line 1 column 18."),
    ("PUT", "/machine-config", '{"vcpu_count": -1, "mem_size_mib": 1}', BODY + "invalid value: integer `-1`, expected u8 at line 1 column 17."),
    ("PUT", "/machine-config", '{"vcpu_count": "2", "mem_size_mib": 1}', BODY + 'invalid type: string "2", expected u8 at line 1 column 18.'),
    ("PUT", "/machine-config", '{"vcpu_count": 1.5, "mem_size_mib": 1}', BODY + "invalid type: floating point `1.5`, expected u8 at line 1 column 18."),
    ("PUT", "/machine-config", '{"vcpu_count": null, "mem_size_mib": 1}', BODY + "invalid type: null, expected u8 at line 1 column 19."),
    ("PUT", "/boot-source", '{"kernel_image_path": "/k",\n "kernel": 1}', BODY + "unknown field `kernel`, expected one of `kernel_image_path`, `initrd_path`, `boot_args` at line 2 column 9."),
    ("PUT", "/boot-source", '{"boot_args": "a", "boot_args": "b"}', BODY + "duplicate field `boot_args` at line 1 column 30."),
    ("PUT", "/boot-source", "[]", BODY + "invalid type: sequence, expected struct BootSourceConfig at line 1 column 2."),
    ("PUT", "/boot-source", "{", BODY + "EOF while parsing an object at line 1 column 1."),
    ("PUT", "/boot-source", '{"a"}', BODY + "expected `:` at line 1 column 5."),
    ("PUT", "/boot-source", '{"a": 1,}', BODY + "trailing comma at line 1 column 9."),
    ("PUT", "/boot-source", "nope", BODY + "expected value at line 1 column 1."),
    ("PUT", "/boot-source", '{"kernel_image_path": "k"} x', BODY + "trailing characters at line 1 column 28."),
    ("PUT", "/boot-source", "", "Empty PUT request."),
    ("PUT", "/vsock", '{"guest_cid": 3, "uds_path": 4}', BODY + "invalid type: integer `4`, expected a string at line 1 column 30."),
    ("PUT", "/vsock", '{"guest_cid": 3, "uds": ""}', BODY + "unknown field `uds`, expected one of `vsock_id`, `guest_cid`, `uds_path` at line 1 column 22."),
    ("PUT", "/mmds/config", '{"version": "foo", "network_interfaces": []}', BODY + "unknown variant `foo`, expected `V1` or `V2` at line 1 column 17."),
    ("PUT", "/mmds/config", '{"network_interfaces": [], "ipv4_address": "x"}', BODY + "invalid IPv4 address syntax at line 1 column 46."),
    ("PUT", "/mmds/nonsense", "{}", "Unrecognized PUT request path `nonsense`."),
    ("PUT", "/actions", '{"action_type": "Reboot"}', BODY + "unknown variant `Reboot`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel` at line 1 column 24."),
    ("PUT", "/entropy", '{"rate_limiter": {"bytes": {}}}', BODY + "unknown field `bytes`, expected `bandwidth` or `ops` at line 1 column 25."),
    ("PUT", "/drives/a", '{"drive_id": "b", "is_root_device": true}', "The id from the path does not match the id from the body!"),
    ("PUT", "/drives/a-b", "{}", "API Resource IDs can only contain alphanumeric characters and underscores."),
    ("PUT", "/drives/", "{}", "The ID cannot be empty."),
    ("PUT", "/network-interfaces/eth0", '{"iface_id": "eth1", "host_dev_name": "t"}', "The id from the path [eth0] does not match the id from the body [eth1]!"),
    ("PUT", "/network-interfaces/e", '{"iface_id": "e", "host_dev_name": "t", "guest_mac": "1:2"}', BODY + "The provided MAC address is invalid. at line 1 column 58."),
    ("PUT", "/logger", '{"level": "Loud"}', BODY + "Invalid LevelFilter at line 1 column 16."),
    ("PUT", "/snapshot", "{}", "Missing snapshot operation type."),
    ("PUT", "/snapshot/delete", "{}", "Invalid request method and/or path: PUT /snapshot/delete."),
    ("PUT", "/snapshot/load", '{"snapshot_path": "s"}', BODY + "missing field: either `mem_backend` or `mem_file_path` is required."),
    ("PUT", "/snapshot/load", '{"snapshot_path": "s", "mem_file_path": "m", "mem_backend": {"backend_path": "m", "backend_type": "File"}}', BODY + "too many fields: either `mem_backend` or `mem_file_path` exclusively is required."),
    ("PUT", "/nothing", "{}", "Invalid request method and/or path: PUT nothing."),
    ("PATCH", "/machine-config", "{}", "Empty PATCH request."),
    ("PATCH", "/logger", "{}", "Invalid request method and/or path: PATCH logger."),
    ("PATCH", "/vm", '{"state": "Stopped"}', BODY + "unknown variant `Stopped`, expected `Paused` or `Resumed` at line 1 column 19."),
    ("PATCH", "/balloon", "", "Empty PATCH request."),
    ("GET", "/", "{}", "GET request cannot have a body."),
    ("GET", "/balloon/size", "", "Unrecognized GET request path `size`."),
    ("GET", "/balloon/hinting/now", "", "Unrecognized GET request path `/hinting/now`."),
    ("GET", "/vm", "", "Invalid request method and/or path: GET vm."),
    ("DELETE", "/drives/a", "", "Invalid request method and/or path: DELETE drives."),
    ("PUT", "/pmem/p", "{}", "This stand-in for Firecracker has no pmem device"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "words"), REFUSED)
def test_a_bad_request_is_refused_in_firecrackers_words(method, path, body, words):
    with pytest.raises(FaultError) as caught:
        route(method, path, body.encode(), NEW)
    assert caught.value.message == words
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "action"),
    [
        ("GET", "/", "", "describe"),
        ("GET", "/vm/config", "", "full-config"),
        ("GET", "/machine-config/", "", "get-machine"),
        ("GET", "/balloon/statistics", "", "get-balloon-stats"),
        ("PUT", "/mmds", '{"any": ["thing"]}', "put-mmds"),
        ("PATCH", "/mmds", '{"any": null}', "patch-mmds"),
        ("PUT", "/entropy", "{}", "put-entropy"),
        ("PATCH", "/balloon/hinting/start", "", "start-hinting"),
        ("PATCH", "/balloon/hinting/stop", "", "stop-hinting"),
    ],
)
def test_a_good_request_says_what_it_asks(method, path, body, action):
    assert route(method, path, body.encode(), NEW).action == action


def test_what_is_not_said_has_firecrackers_default():
    drive = {"drive_id": "a", "is_root_device": False, "path_on_host": "/d"}
    call = route("PUT", "/drives/a", json.dumps(drive).encode(), NEW)
    assert call.values == {
        **drive, "partuuid": None, "cache_type": "Unsafe", "is_read_only": None, "rate_limiter": None,
        "io_engine": None, "socket": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "since"),
    [
        ("PUT", "/serial", "{}", (1, 14)),
        ("PUT", "/serial", '{"rate_limiter": null}', (1, 16)),
        ("PUT", "/balloon", '{"amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true}', (1, 14)),
        ("PATCH", "/balloon/hinting/stop", "{}", (1, 14)),
        ("PUT", "/network-interfaces/e", '{"iface_id": "e", "host_dev_name": "t", "mtu": 1500}', (1, 16)),
        ("PUT", "/machine-config", '{"vcpu_count": 1, "mem_size_mib": 2, "huge_pages": "Transparent"}', (1, 17)),
        ("PUT", "/snapshot/load", '{"snapshot_path": "s", "mem_file_path": "m", "network_overrides": []}', (1, 12)),
        ("PUT", "/snapshot/load", '{"snapshot_path": "s", "mem_file_path": "m", "vsock_override": null}', (1, 16)),
    ],
)  # fmt: skip
def test_an_older_release_does_not_know_what_came_later(method, path, body, since):
    route(method, path, body.encode(), since)
    with pytest.raises(FaultError):
        route(method, path, body.encode(), (since[0], since[1] - 1, 9))


def test_an_older_release_does_not_name_the_later_fields():
    with pytest.raises(
        FaultError,
        match="expected one of `amount_mib`, `deflate_on_oom`, `stats_polling_interval_s` at",
    ):
        route("PUT", "/balloon", b'{"x": 1}', (1, 13))


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/vsock", {"vsock_id": "v", "guest_cid": 3, "uds_path": "u"}, "PUT /vsock: vsock_id field is deprecated."),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "T2"}, "PUT /machine-config: cpu_template field is deprecated."),
        ("/mmds/config", {"network_interfaces": ["e"]}, "PUT /mmds/config: V1 is deprecated. Use V2 instead."),
        ("/mmds/config", {"network_interfaces": ["e"], "version": "V2"}, ""),
    ],
)  # fmt: skip
def test_what_is_deprecated_is_said(path, body, words):
    assert route("PUT", path, json.dumps(body).encode(), NEW).deprecated == words


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@settings(deadline=None)
@given(json_values, st.sampled_from([None, 1]))
def test_any_json_is_read_as_the_standard_library_reads_it(value, indent):
    text = json.dumps(value, indent=indent, ensure_ascii=indent is None)
    node = jsontext.parse(text.encode())
    assert node.plain == value
    assert node.end == len(text.encode())


@settings(deadline=None)
@given(
    st.text()
    | json_values.map(json.dumps).flatmap(
        lambda text: st.builds(lambda n: text[:n], st.integers(0, len(text)))
    )
)
def test_what_the_standard_library_refuses_is_refused_with_a_place(text):
    try:
        json.loads(text, parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))
    except ValueError:
        with pytest.raises(jsontext.JsonError) as caught:
            jsontext.parse(text.encode())
        assert 0 <= caught.value.end <= len(text.encode()) + 1
    else:
        jsontext.parse(text.encode())


def test_a_bomb_of_brackets_is_refused():
    with pytest.raises(jsontext.JsonError, match="recursion limit exceeded"):
        jsontext.parse(b"[" * 100_000)
