"""Downloads over real HTTP: cut at every byte, resumed, lied to, redirected; accepted by digest alone."""

import errno
import os
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.bundle.report import Silent
from banger.host import download as module
from banger.host import exec as host_exec
from banger.host.download import Wanted, download
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError
from tests.framework.bundles import Server, sha256

DATA = bytes(range(128)) + b"the end"


class Listener(Silent):
    def __init__(self):
        self.notes, self.steps = [], []

    def advance(self, stage, done_bytes, total_bytes):
        self.steps.append((stage, done_bytes, total_bytes))

    def note(self, sentence):
        self.notes.append(sentence)


@pytest.fixture
def server():
    with Server(DATA) as server:
        yield server


@pytest.fixture
def part(tmp_path):
    return tmp_path / "x.part"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.001)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def get(part, *urls, data=DATA, listener=None, seconds=20):
    wanted = Wanted(urls, len(data), sha256(data))
    download(wanted, part, Deadline.after(seconds), listener or Silent())
    assert part.read_bytes() == data


def fails(part, *urls, **more):
    with pytest.raises(HostLacksError, match="could not be downloaded") as caught:
        get(part, *urls, **more)
    return caught.value


def test_a_whole_download_is_one_request_and_tells_its_progress(server, part):
    listener = Listener()
    get(part, server.url, listener=listener)
    assert server.asked == [("/bundle.tar.gz", None, None)]
    assert listener.steps[-1] == ("download", len(DATA), len(DATA))
    assert listener.notes == []
    assert sorted(p.name for p in part.parent.iterdir()) == ["x.part"]


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', None])
def test_a_download_that_was_cut_at_any_byte_goes_on_there_and_no_byte_comes_twice(
    server, part, etag
):
    server.etag = etag
    for have in range(len(DATA)):
        server.asked.clear()
        server.served = 0
        part.write_bytes(DATA[:have])
        get(part, server.url)
        assert server.served == len(DATA) - have, have
        assert server.asked[0][1] == (f"bytes={have}-" if have else None)


def test_answers_of_any_length_add_up(server, part):
    for cut in [1, 2, 3, 7, 100, len(DATA) - 1]:
        part.unlink(missing_ok=True)
        server.served, server.cut = 0, cut
        server.asked.clear()
        get(part, server.url)
        assert server.served == len(DATA)
        assert len(server.asked) == -(-len(DATA) // cut)
        assert [asked for _, asked, _ in server.asked[1:]] == [
            f"bytes={n}-" for n in range(cut, len(DATA), cut)
        ]
        assert {tag for *_, tag in server.asked[1:]} == {'"one"'}  # and not another archive's rest


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6), ranges=st.booleans())
def test_whatever_is_cut_wherever_the_archive_is_whole_in_the_end(server, part, cuts, ranges):
    part.unlink(missing_ok=True)
    server.ranges = ranges
    server.asked.clear()
    for cut in cuts:
        server.cut = cut
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_TRIES", 1)
            try:
                get(part, server.url)
            except HostLacksError:
                assert DATA.startswith(part.read_bytes() if part.exists() else b"")
    server.cut = None
    get(part, server.url)


def test_a_server_without_ranges_sends_it_anew(server, part):
    server.ranges = False
    part.write_bytes(DATA[:100])
    get(part, server.url)
    assert server.served == len(DATA)
    assert server.asked[0][1] == "bytes=100-"


def test_an_archive_that_was_replaced_meanwhile_is_not_mixed_with_the_old_one(server, part):
    server.cut, server.data = 100, b"?" * len(DATA)
    fails(part, server.url, data=b"!" * len(DATA))
    server.cut, server.data, server.etag = None, DATA, '"two"'
    server.asked.clear()
    get(part, server.url)
    assert len(server.asked) == 1


def test_pieces_of_two_archives_are_noticed_and_it_is_fetched_once_more(server, part):
    server.etag = None
    part.write_bytes(b"?" * 100)
    get(part, server.url)
    assert [asked for _, asked, _ in server.asked] == ["bytes=100-", None]


def test_a_wrong_archive_is_refused_once_and_not_kept(server, part):
    error = fails(part, server.url, data=b"x" * len(DATA))
    assert "its SHA-256 is not the manifest's" in error.detail
    assert len(server.asked) == 1
    assert not part.exists()


def test_a_wrong_archive_in_pieces_is_not_fetched_for_ever(server, part):
    server.cut = 80
    error = fails(part, server.url, data=b"x" * len(DATA))
    assert "SHA-256" in error.detail
    assert len(server.asked) == 4


def test_urls_are_tried_in_turn_and_a_piece_of_one_is_completed_by_another(server, part):
    server.status = {"/gone": 404}
    listener = Listener()
    base = server.url.rpartition("/")[0]
    with Server(DATA) as cut:
        cut.cut, cut.etag = 60, '"other"'
        cut.lie = {"Content-Range": "bytes 1-2/3"}  # so that it is given up after its first piece
        get(part, f"{base}/gone", cut.url, server.url, listener=listener)
    assert "404" in listener.notes[0]
    assert "another range" in listener.notes[1]
    assert server.asked[-1] == ("/bundle.tar.gz", "bytes=60-", None)
    assert server.served == len(DATA) - 60


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_gone_is_not_asked_for_again(server, part, status):
    server.status = {"/bundle.tar.gz": status}
    assert str(status) in fails(part, server.url).detail
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_asked_three_times(server, part, status):
    server.status = {"/bundle.tar.gz": status}
    assert str(status) in fails(part, server.url).detail
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [204, 203])
def test_a_strange_success_is_none(server, part, status):
    server.status = {"/bundle.tar.gz": status}
    assert f"status {status}" in fails(part, server.url).detail


def test_another_size_is_refused_before_a_byte_is_written(server, part):
    error = fails(part, server.url, data=DATA + b"!")
    assert f"it has {len(DATA)} bytes, the manifest says {len(DATA) + 1}" in error.detail
    assert not part.exists()


def test_an_answer_without_a_length_may_not_be_endless(server, part):
    server.lie = {"Content-Length": None}
    get(part, server.url)
    part.unlink()
    error = fails(part, server.url, data=DATA[:-1])
    assert "it has more bytes" in error.detail
    assert not part.exists()


@pytest.mark.parametrize("text", ["bytes 99-134/135", "bytes */135", "", "bytes 100-134/9"])
def test_another_range_than_asked_for_is_not_taken(server, part, text):
    server.lie = {"Content-Range": text}
    part.write_bytes(DATA[:100])
    fails(part, server.url)
    assert part.read_bytes() == DATA[:100]


def test_a_piece_that_is_too_long_is_dropped(server, part):
    part.write_bytes(DATA + b"more")
    get(part, server.url)


def test_redirections_are_followed_but_to_no_other_scheme(server, part):
    base = server.url.rpartition("/")[0]
    server.redirect = {"/there": server.url, "/file": "file:///etc/hostname", "/round": "/round"}
    get(part, f"{base}/there")
    part.unlink()
    assert "not allowed" in fails(part, f"{base}/file").detail
    assert "infinite loop" in fails(part, f"{base}/round").detail


def test_a_proxy_of_the_environment_is_used(server, part, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.rpartition("/")[0])
    monkeypatch.setenv("no_proxy", "")
    get(part, "http://bundles.invalid/bundle.tar.gz")
    assert server.asked[0][0] == "http://bundles.invalid/bundle.tar.gz"


def test_nobody_listening_is_told(part):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refused" in fails(part, f"http://127.0.0.1:{port}/x").detail.lower()


def test_a_server_that_says_nothing_is_left_at_the_deadline(part):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        assert "took too long" in fails(part, url, seconds=0.3).detail


def test_garbage_instead_of_http_is_told(part):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"\x00\xff nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert "nonsense" in fails(part, f"http://127.0.0.1:{listener.getsockname()[1]}/x").detail
        thread.join()


def test_what_came_is_kept_for_the_next_time_and_told(server, part):
    server.cut = 0
    part.write_bytes(DATA[:77])
    error = fails(part, server.url)
    assert f"77 of {len(DATA)} bytes are kept" in error.detail
    assert part.read_bytes() == DATA[:77]


def test_a_disk_error_is_no_fault_of_the_server(server, part, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        get(part, server.url)
    assert len(server.asked) == 1


def test_nothing_is_written_through_a_link(server, part):
    other = part.with_name("other")
    other.write_bytes(b"precious")
    part.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        get(part, server.url)
    assert other.read_bytes() == b"precious"


def test_https_is_verified_by_the_certificates_that_this_host_trusts(part, tmp_path, monkeypatch):
    try:
        openssl = host_exec.find_program("openssl")
    except HostLacksError as error:
        pytest.skip(error.what)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    host_exec.run_sync(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
         "-out", certificate, "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        timeout_s=30,
    )  # fmt: skip
    with Server(DATA, tls=(certificate, key)) as server:
        assert "certificate" in fails(part, server.url).detail
        assert not part.exists()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        get(part, server.url)
