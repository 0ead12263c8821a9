"""Byte ranges from a server that does what servers do: exactly those bytes, or an error."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.hub_server import Fault, HubServer
from vita_ckpt.core.address import Address
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError, StaleInputError, VitaCkptError
from vita_ckpt.storage.hub.byte_ranges import coalesced, fetch, fetch_bytes
from vita_ckpt.storage.hub.session import Session
from vita_ckpt.storage.hub.store import HubStore

DATA = os.urandom(400_000)
LARGE, SMALL = "weights.safetensors", "config.json"


class Way:
    """A hub with one repository, and the way to it, which never really waits."""

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self.waits: list[float] = []
        self.session = Session(hub.url, self.waits.append)

    def file(self, name: str = LARGE) -> RemoteFile:
        """One of the files, as it is listed."""
        store = HubStore(self.session)
        entry = store.look(f"{store.pin(Address('org/name'))}/{name}")
        assert entry is not None
        assert isinstance(entry.file, RemoteFile)
        return entry.file

    def get(self, start: int, stop: int, name: str = LARGE) -> bytes:
        """Bytes of one of the files."""
        return fetch_bytes(self.session, self.file(name), start, stop)


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    root = tmp_path / "repository"
    root.mkdir()
    (root / LARGE).write_bytes(DATA)
    (root / SMALL).write_bytes(DATA[:300_000])
    with HubServer() as hub:
        hub.add("org/name", root)
        yield Way(hub)


def test_a_range_of_a_large_and_of_a_small_file(way: Way) -> None:
    assert way.get(10, 99_000) == DATA[10:99_000]
    assert way.get(3, 500, SMALL) == DATA[3:500]
    assert way.get(0, len(DATA)) == DATA
    assert way.get(0, 300_000, SMALL) == DATA[:300_000]
    ranges = [seen.range for seen in way.hub.seen if seen.large]
    # A whole file is asked for as a whole: that works everywhere.
    assert ranges == ["bytes=10-98999", ""]


@pytest.mark.parametrize(
    ("name", "place"), [(LARGE, r"^/org/name/[0-9a-f]{40}/"), (SMALL, "resolve/.*config")]
)
def test_a_broken_connection_is_continued_where_it_broke(way: Way, name: str, place: str) -> None:
    for after in (100_000, 0, 50_000):
        way.hub.faults.append(Fault(place, "drop", after, ranged=True))
    assert way.get(20, 299_000, name) == DATA[20:299_000]
    asked = [s.range.removeprefix("bytes=").split("-") for s in way.hub.seen if s.status == 206]
    starts, stops = zip(*asked, strict=True)
    assert set(stops) == {"298999"}
    first, second, third, fourth = map(int, starts)
    # What one library had in its hands when the connection broke is asked for again.
    assert first == 20
    assert 100_000 - 16384 < second == third <= 100_020
    assert second + 50_000 - 16384 < fourth <= second + 50_000


def test_patience_ends(way: Way) -> None:
    file = way.file()
    fault = Fault(r"^/org/name/[0-9a-f]{40}/", "drop", 0, times=99)
    way.hub.faults.append(fault)
    with pytest.raises(HubError) as error:
        fetch_bytes(way.session, file, 0, 500)
    assert error.value.code in ("wrong-range", "hub-unreachable")
    assert fault.times == 99 - 5
    assert way.waits == [0.25, 0.5, 1.0, 2.0]


def test_what_advances_is_not_given_up(way: Way) -> None:
    file = way.file()
    fault = Fault(r"^/org/name/[0-9a-f]{40}/", "drop", 40_000, times=9)
    way.hub.faults.append(fault)
    assert fetch_bytes(way.session, file, 0, 390_000) == DATA[:390_000]
    assert fault.times == 0
    assert set(way.waits) == {0.25}


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault(r"^/org/name/[0-9a-f]{40}/", "whole"), "no-range-support", "got 200"),
        (Fault(r"^/org/name/[0-9a-f]{40}/", "range"), "wrong-range", "bytes 18-"),
        (Fault(r"^/org/name/[0-9a-f]{40}/", "short"), "wrong-range", "Content-Length 45"),
        (Fault(r"^/org/name/[0-9a-f]{40}/", "long"), "wrong-range", "Content-Length 98"),
        (Fault(r"^/org/name/[0-9a-f]{40}/", "status", 416), "wrong-range", "416"),
        (Fault(r"^/org/name/[0-9a-f]{40}/", "status", 206), "wrong-range", "no Content-Range"),
        (Fault("resolve/", "etag"), "input-changed", "expected etag"),
        (Fault("resolve/", "commit"), "input-changed", "expected commit"),
        (Fault("resolve/", "mute"), "hub-failed", "got neither"),
        (Fault(r"^/org/name/[0-9a-f]{40}/", "packed"), "hub-failed", "Content-Encoding gzip"),
        (Fault("resolve/", "status", 404), "repository-not-found", "404"),
        (
            Fault("resolve/", "status", 404, headers={"X-Error-Code": "RevisionNotFound"}),
            "revision-not-found",
            "",
        ),
        (
            Fault("resolve/", "status", 404, headers={"X-Error-Code": "EntryNotFound"}),
            "not-on-hub",
            "",
        ),
        (Fault("resolve/", "status", 403), "hub-forbids", "HF_TOKEN"),
        (Fault("resolve/", "status", 418), "hub-failed", "418"),
        (Fault("resolve/", "status", 302, headers={"Location": "/loop"}), "repository-not-", ""),
    ],
)
def test_what_is_not_what_was_asked_for(way: Way, fault: Fault, code: str, words: str) -> None:
    file = way.file()
    way.hub.faults.append(fault)
    with pytest.raises(VitaCkptError) as error:
        fetch_bytes(way.session, file, 10, 100)
    assert error.value.code.startswith(code), error.value
    assert words in str(error.value)
    assert isinstance(error.value, StaleInputError) == (code == "input-changed")
    assert way.waits == []
    assert fault.times == 0
    assert fetch_bytes(way.session, file, 10, 100) == DATA[10:100]


@pytest.mark.parametrize(
    ("name", "fault", "code"),
    [
        (SMALL, Fault("config.json", "etag"), "input-changed"),
        (SMALL, Fault("config.json", "commit"), "input-changed"),
        (SMALL, Fault("config.json", "mute"), "hub-failed"),
        (SMALL, Fault("config.json", "packed"), "hub-failed"),
        (SMALL, Fault("config.json", "short"), "wrong-range"),
        (SMALL, Fault("config.json", "whole", ranged=True), "no-range-support"),
    ],
)
def test_files_that_the_hub_gives_itself(way: Way, name: str, fault: Fault, code: str) -> None:
    file = way.file(name)
    way.hub.faults.append(fault)
    with pytest.raises(VitaCkptError) as error:
        fetch_bytes(way.session, file, 10, 100)
    assert error.value.code == code


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_waited_for(way: Way, status: int) -> None:
    file = way.file()
    way.hub.faults.append(Fault("weights", "status", status, times=3))
    assert fetch_bytes(way.session, file, 10, 100) == DATA[10:100]
    assert way.waits == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"RateLimit": '"resolvers";r=0;t=11'}, 11.0),
        ({"RateLimit": '"resolvers";r=499;t=297'}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.25),
        ({"Retry-After": "9" * 50}, 0.25),
    ],
)
def test_as_long_as_the_server_asks(way: Way, headers: dict[str, str], wait: float) -> None:
    file = way.file()
    way.hub.faults.append(Fault("weights", "status", 429, headers=headers))
    assert fetch_bytes(way.session, file, 10, 100) == DATA[10:100]
    assert way.waits == [wait]


def test_too_long_a_wait_is_said(way: Way) -> None:
    file = way.file()
    way.hub.faults.append(Fault("weights", "status", 429, headers={"Retry-After": "3600"}))
    with pytest.raises(HubError) as error:
        fetch_bytes(way.session, file, 10, 100)
    assert error.value.code == "rate-limited"
    assert way.waits == []


def test_a_loop_of_redirects_and_a_server_that_is_not_there(way: Way) -> None:
    file = way.file()
    again = {"Location": f"{way.hub.url}/org/name/resolve/loop"}
    way.hub.faults.append(Fault("resolve/", "status", 302, times=9, headers=again))
    with pytest.raises(HubError, match="too many redirects"):
        fetch_bytes(way.session, file, 10, 100)
    way.hub.faults.clear()
    nowhere = {"Location": "http://127.0.0.1:9/nothing"}
    way.hub.faults.append(Fault("resolve/", "status", 302, times=9, headers=nowhere))
    with pytest.raises(HubError) as error:
        fetch_bytes(way.session, file, 10, 100)
    assert error.value.code == "hub-unreachable"


@pytest.mark.parametrize(
    "location",
    [
        "http://[bad/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:port/x",
        "http://1.2.3.999/x",
        f"http://{'a' * 70}/x",
        "http://a..b/x",
        "//[",
        "http://127.0.0.1/a\tb",
        "http://127.0.0.1/\xe9",
    ],
)
# requests looks at the address as well, and leaves the connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_redirect_to_no_address_is_followed_once(way: Way, location: str) -> None:
    file = way.file()
    headers = {"Location": location}
    way.hub.faults.append(Fault("resolve/", "status", 302, times=9, headers=headers))
    with pytest.raises(HubError) as error:
        fetch_bytes(way.session, file, 10, 100)
    assert error.value.code in ("hub-failed", "hub-unreachable")
    if error.value.code == "hub-failed":  # some libraries try to find such a host
        assert "an address that begins with" in str(error.value)
        assert way.waits == []
    assert str(error.value).isprintable()
    del error
    gc.collect()


@pytest.mark.parametrize("endpoint", ["hub.example", "file:///tmp", "", "http://"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    with pytest.raises(HubError, match="HF_ENDPOINT") as error:
        HubStore(Session(endpoint or "nothing")).pin(Address("org/name"))
    assert error.value.code == "hub-failed"


def test_an_endpoint_in_capitals(way: Way) -> None:
    hub = HubStore(Session(way.hub.url.replace("http", "HTTP")))
    assert hub.pin(Address("org/name")).is_pinned


def test_a_packed_listing_is_refused(way: Way) -> None:
    headers = {"Content-Encoding": "gzip"}
    way.hub.faults.append(Fault("/api/", "status", 200, headers=headers))
    with pytest.raises(HubError, match="Content-Encoding gzip"):
        way.file()


def test_what_takes_its_time_is_said_once(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    file = way.file()
    fault = Fault("weights", "status", 429, times=4, headers={"Retry-After": "40"})
    way.hub.faults.append(fault)
    spans = [(start, start + 10) for start in range(0, 80_000, 10_000)]
    fetch(way.session, [(file, span, lambda: nullcontext(lambda *_: None)) for span in spans])
    assert way.waits == [40.0] * 4
    (said,) = caplog.messages
    assert said.startswith("rate-limited: hf://org/name@")
    assert said.endswith("trying again in 40 s")
    way.hub.faults.append(Fault("weights", "status", 503))
    fetch_bytes(way.session, file, 0, 10)
    assert len(caplog.messages) == 1


def test_the_end_waits_for_nobody(way: Way) -> None:
    """The first error is raised while other requests hang, and what waits is never asked."""
    file = way.file()
    place = r"^/org/name/[0-9a-f]{40}/"
    way.hub.faults += [Fault(place, "stall", 30, times=7), Fault(place, "whole")]
    began = time.monotonic()
    spans = [(start, start + 10) for start in range(0, 300_000, 10_000)]
    with pytest.raises(HubError, match="no-range-support"):
        fetch(way.session, [(file, span, lambda: nullcontext(lambda *_: None)) for span in spans])
    assert time.monotonic() - began < 10
    assert sum(seen.range != "" for seen in way.hub.seen) <= 2 * 8


def test_several_ranges_at_once_and_the_first_error_ends_them(way: Way) -> None:
    file = way.file()
    got = bytearray(len(DATA))

    def put(data: bytes, offset: int) -> None:
        got[offset : offset + len(data)] = data

    spans = [(start, start + 4000) for start in range(0, 400_000, 4000)]
    fetch(way.session, [(file, span, lambda: nullcontext(put)) for span in spans])
    assert bytes(got) == DATA
    way.hub.faults.append(Fault(r"^/org/name/[0-9a-f]{40}/", "whole", times=1))
    with pytest.raises(HubError, match="no-range-support"):
        fetch(way.session, [(file, span, lambda: nullcontext(put)) for span in spans])


def test_a_connection_serves_many_requests(way: Way) -> None:
    """Although the hub says something with every redirect."""
    file = way.file()
    way.hub.redirects_say = b"Found. Redirecting to another place"
    for start in range(0, 50_000, 5000):
        assert fetch_bytes(way.session, file, start, start + 10) == DATA[start : start + 10]
    assert way.hub.connections == 2


def test_an_address_is_asked_for_once_until_it_expires(way: Way) -> None:
    file = way.file()
    for start in (0, 1000, 2000):
        assert fetch_bytes(way.session, file, start, start + 10) == DATA[start : start + 10]
    assert [s.status for s in way.hub.seen if "resolve" in s.path] == [302]
    place = r"^/org/name/[0-9a-f]{40}/"
    # Each time the hub is asked anew: it has expired, it is gone, the connection breaks.
    for n, kind in enumerate(("status", "drop", "whole"), 2):
        way.hub.faults.append(Fault(place, kind, 403 if kind == "status" else 5))
        if kind == "whole":
            with pytest.raises(HubError, match="no-range-support"):
                fetch_bytes(way.session, file, 10, 50)
        assert fetch_bytes(way.session, file, 10, 50) == DATA[10:50]
        assert [s.status for s in way.hub.seen if "resolve" in s.path] == [302] * n
    # Who is busy is not asked elsewhere meanwhile.
    way.hub.faults.append(Fault(place, "status", 503, headers={"Retry-After": "7"}))
    way.waits.clear()
    assert fetch_bytes(way.session, file, 10, 50) == DATA[10:50]
    assert way.waits == [7.0]
    assert not any(seen.token for seen in way.hub.seen)


def test_what_is_read_goes_on_from_what_was_read(way: Way) -> None:
    """A file is read in any order, and no byte that continues a known one twice."""
    file = way.file()
    store = HubStore(way.session)
    store.pin(Address("org/name"))
    with store.open(file.path) as source:
        for size, offset in ((100, 0), (40, 0), (500, 50), (500, 50), (30, 600), (700, 20)):
            assert source.read(size, offset) == DATA[offset : offset + size]
        source.expect([(10, 0), (100, 5000), (200, 5000), (150, 5000)])
        assert source.read(200, 5000) == DATA[5000:5200]
    assert [s.range for s in way.hub.seen if s.large][:4] == [
        "bytes=0-99",
        "bytes=100-549",
        "bytes=600-629",
        "bytes=550-719",
    ]


def test_the_bytes_that_moved_are_counted(way: Way) -> None:
    file = way.file()
    before = way.session.bytes_downloaded
    assert before == way.hub.bytes_sent
    fetch_bytes(way.session, file, 10, 5000)
    assert way.session.bytes_downloaded - before == 4990


spans = st.lists(st.tuples(st.integers(0, 1 << 26), st.integers(0, 1 << 26)), max_size=12)


@given(spans)
def test_coalesced_spans_cover_what_was_asked_for_once(pairs: list[tuple[int, int]]) -> None:
    wanted = [(min(pair), max(pair)) for pair in pairs]
    found = list(coalesced(wanted))
    assert found == sorted(found)
    assert all(0 < stop - start <= 16 << 20 for start, stop in found)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    merged: list[list[int]] = []
    for start, stop in found:
        if merged and merged[-1][1] == start:
            merged[-1][1] = stop
        else:
            merged.append([start, stop])
    for start, stop in wanted:
        assert start == stop or any(a <= start and stop <= b for a, b in merged)
    extra = sum(b - a for a, b in merged) - sum(b - a for a, b in wanted)
    assert extra <= 4096 * len(wanted)
