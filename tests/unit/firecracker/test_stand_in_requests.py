"""Requests: what the stand-in for Firecracker makes of them, and in whose words it refuses them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.framework.firecracker import jsontext
from tests.framework.firecracker.examples import REFUSED
from tests.framework.firecracker.routes import FaultError, route

NEW = (1, 17)


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
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@settings(deadline=None)
@given(json_values, st.sampled_from([None, 1]))
def test_any_json_is_read_as_the_standard_library_reads_it(value, indent):
    text = json.dumps(value, indent=indent, ensure_ascii=indent is None)
    assert jsontext.loads(text.encode()) == value


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
            jsontext.loads(text.encode())
        assert 0 <= caught.value.end <= len(text.encode()) + 1
    else:
        jsontext.loads(text.encode())


def test_a_bomb_of_brackets_is_refused():
    with pytest.raises(jsontext.JsonError, match="recursion limit exceeded"):
        jsontext.loads(b"[" * 100_000)
