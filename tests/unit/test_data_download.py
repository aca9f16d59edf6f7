"""Sources by address: bounded waiting, whole or not at all, one clear line."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data_makers import SMALL, png, python_archive, small_splits, tar, tree
from trainer.data import download
from trainer.data.dataset import Archive, Dataset
from trainer.data.download import DownloadError, fetch, unsigned
from trainer.data.pack import locate, pack
from trainer.data.packed import FILE_NAME
from trainer.data.pulse import Pulse
from trainer.data.scratch import scratch
from trainer.exits import UserError


@dataclass
class Served:
    """A web server on this machine, and how it behaves."""

    url: str = ""
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    cut: int = 0  # bytes not sent of those promised
    hang: str = ""  # "before" the answer, or "within" it
    asked: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    stop: Callable[[], None] = lambda: None


@pytest.fixture
def served() -> Iterator[Served]:
    it = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.asked.append(self.path)
            if it.hang == "before":
                it.release.wait(30)
                return
            self.send_response(it.status)
            for name, value in {"Content-Length": str(len(it.content)), **it.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            body = it.content[: len(it.content) - it.cut]
            if it.hang == "within":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                it.release.wait(30)
                return
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    it.url = f"http://127.0.0.1:{server.server_port}"

    def stop() -> None:
        it.release.set()
        server.shutdown()
        server.server_close()

    it.stop = stop
    yield it
    stop()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "fetch", partial(fetch, silence_s=1.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


def refused(source: str, folder: Path, why: str, dataset: Dataset = SMALL) -> None:
    with pytest.raises(UserError, match=why) as caught:
        pack(dataset, source, folder, say=lambda line: None)
    assert str(caught.value).isprintable()
    assert ".partial" not in str(caught.value)
    assert nothing_left(folder)


def test_an_archive_is_fetched_and_packed_and_no_download_stays(served: Served, tmp_path: Path) -> None:
    served.content = tar(tmp_path / "x.tar.xz", tree(small_splits()), "w:xz").read_bytes()
    packed = pack(SMALL, f"{served.url}/a/pictures.tar.xz?key=secret", tmp_path / "out", say=lambda line: None)
    packed.verify()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [FILE_NAME]
    assert packed.origin.name == "pictures.tar.xz"
    assert b"secret" not in packed.path.read_bytes()[:4096]


def test_the_same_version_is_not_fetched_again(served: Served, tmp_path: Path) -> None:
    served.content = tar(tmp_path / "x.tar.xz", tree(small_splits()), "w:xz").read_bytes()
    served.headers = {"ETag": '"1"'}
    said: list[str] = []
    first = pack(SMALL, f"{served.url}/x.tar.xz", tmp_path / "out", say=said.append)
    inode = first.path.stat().st_ino
    pack(SMALL, f"{served.url}/x.tar.xz", tmp_path / "out", say=said.append)
    assert "already packed" in said[-1]
    assert first.path.stat().st_ino == inode
    served.headers = {"ETag": '"2"'}
    served.content = tar(tmp_path / "x.tar.xz", tree(small_splits(2)), "w:xz").read_bytes()
    assert pack(SMALL, f"{served.url}/x.tar.xz", tmp_path / "out", say=said.append).sha256 != first.sha256


def test_the_same_bytes_with_another_tag_are_fetched_once_more_and_no_oftener(served: Served, tmp_path: Path) -> None:
    dataset, made, options = KINDS["small pictures"]
    served.content = made(tmp_path)
    found = partial(pack, dataset, f"{served.url}/x.tar", tmp_path / "out", options=options)
    hashes = set()
    for tag in ("1", "2", "2"):
        if served.headers.get("ETag") == tag:
            served.hang = "within"  # its answer alone comes
        served.headers = {"ETag": tag}
        said: list[str] = []
        hashes.add(found(say=said.append).sha256)
    assert said[-1].startswith("already packed")
    assert not any("taken" in line for line in said)
    assert len(hashes) == 1


def test_photographs_with_another_tag_are_fetched_and_not_decoded_again(served: Served, tmp_path: Path) -> None:
    """Servers behind a balancer may have a tag each."""
    served.content = photographs(tmp_path)
    found = partial(pack, "imagenet", f"{served.url}/x.tar", tmp_path / "out", options={"size": 32})
    for number, tag in enumerate(("1", "2", "1")):
        served.headers = {"ETag": tag}
        said: list[str] = []
        found(say=said.append)
        assert said[-1].startswith("already packed" if number else "packed ")


def photographs(folder: Path, brighter: int = 0) -> bytes:
    """A tar of 600, which is as long whatever they show."""
    names = [f"{split}/{kind}/{n:03}.ppm" for split in ("train", "val") for kind in ("newt", "owl") for n in range(150)]
    files = {name: png(np.full((40, 40, 3), n % 200 + brighter, np.uint8), "PPM") for n, name in enumerate(names)}
    return tar(folder / "x.tar", files, "w").read_bytes()


def small_pictures(folder: Path) -> bytes:
    return tar(folder / "x.tar", tree(small_splits()), "w").read_bytes()


KINDS: dict[str, tuple[Dataset | str, Callable[[Path], bytes], dict[str, int]]] = {
    "small pictures": (SMALL, small_pictures, {}),
    "photographs": ("imagenet", photographs, {"size": 32}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_is_neither_fetched_again_nor_lost_with_its_server(
    kind: str, served: Served, tmp_path: Path
) -> None:
    dataset, made, options = KINDS[kind]
    served.content, served.headers = made(tmp_path), {"ETag": '"1"'}
    url, out, said = f"{served.url}/x.tar", tmp_path / "out", list[str]()
    first = pack(dataset, url, out, options=options, say=said.append)
    inode = first.path.stat().st_ino
    served.hang = "within"  # its answer alone comes; who wants the content waits in vain
    pack(dataset, url, out, options=options, say=said.append)
    assert len(served.asked) == 2
    assert not any("taken" in line for line in said)
    served.hang, served.headers = "", {"ETag": '"2"'}
    for status in (503, 404):
        served.status = status
        pack(dataset, url, out, options=options, say=said.append)
        assert f"x.tar: the server answers {status}" in said[-2]
    served.stop()
    pack(dataset, url, out, options=options, say=said.append)
    assert said[-2] == (
        "x.tar: can't be fetched: Connection refused; check the network and the address; "
        "what was packed from there before is taken"
    )
    assert said[-1].startswith("already packed")
    assert first.path.stat().st_ino == inode
    with pytest.raises(UserError, match="Connection refused"):
        pack(dataset, f"http://127.0.0.1:{closed_port()}/x.tar", out, options=options, say=said.append)
    if options:
        with pytest.raises(UserError, match="Connection refused"):
            pack(dataset, url, out, options={"size": 64}, say=said.append)


def stopped(url: str, out: Path) -> None:
    """Packing from there, stopped once a picture is durable."""
    places = out / ".unfinished.places"

    def check() -> None:
        if places.exists() and places.stat().st_size:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pack("imagenet", url, out, options={"size": 32}, check=check, say=lambda line: None)


@pytest.mark.parametrize("change", ["its content", "what its server says"])
def test_a_stopped_packing_goes_on_with_the_very_bytes_alone(change: str, served: Served, tmp_path: Path) -> None:
    """And with these whatever the server says of them, be it nothing."""
    served.content = photographs(tmp_path)
    url, out, said = f"{served.url}/x.tar", tmp_path / "out", list[str]()
    stopped(url, out)
    if change == "its content":
        (tmp_path / "other").mkdir()
        other = photographs(tmp_path / "other", brighter=1)
        assert len(other) == len(served.content)
        served.content = other
    else:
        served.headers = {"ETag": '"another machine behind the same name"'}
    made = pack("imagenet", url, out, options={"size": 32}, say=said.append)
    assert any("going on with picture" in line for line in said) == (change == "what its server says")
    assert made.sha256 == pack("imagenet", url, tmp_path / "anew", options={"size": 32}, say=said.append).sha256


def test_other_photographs_of_the_same_length_are_packed_anew_where_a_server_gives_no_tag(
    served: Served, tmp_path: Path
) -> None:
    served.content = photographs(tmp_path)
    url, out, said = f"{served.url}/x.tar", tmp_path / "out", list[str]()
    first = pack("imagenet", url, out, options={"size": 32}, say=said.append)
    pack("imagenet", url, out, options={"size": 32}, say=said.append)
    assert said[-1].startswith("already packed")
    (tmp_path / "other").mkdir()
    served.content = photographs(tmp_path / "other", brighter=1)
    assert pack("imagenet", url, out, options={"size": 32}, say=said.append).sha256 != first.sha256


SIGNED = {
    "S3's": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature={0}",
    "S3's older": "AWSAccessKeyId=me&Signature={0}&Expires={0}",
    "Google's": "X-Goog-Date={0}&X-Goog-SignedHeaders=host&X-Goog-Signature={0}",
    "Azure's": "sp=r&st={0}&se={0}&spr=https&sv=2024-11-04&sr=b&sig={0}",
    "CloudFront's": "Expires={0}&Signature={0}&Key-Pair-Id=K",
    "Alibaba's": "OSSAccessKeyId={0}&Signature={0}&Expires={0}",
}


@pytest.mark.parametrize("signer", SIGNED)
def test_data_of_a_signed_address_is_found_again_by_the_next_signature(
    signer: str, served: Served, tmp_path: Path
) -> None:
    """What was packed from there, and what a stopped packing left."""
    served.content = photographs(tmp_path)
    cache, said = tmp_path / "cache", list[str]()
    urls = [f"{served.url}/x.tar?id=7&{SIGNED[signer].format(n)}" for n in range(3)]

    def check() -> None:
        if any(path.stat().st_size for path in cache.rglob(".unfinished.places")):
            raise InterruptedError

    found = partial(locate, "imagenet", folder=tmp_path, options={"size": 32}, cache=cache)
    with pytest.raises(InterruptedError):
        found(urls[0], check=check, say=said.append)
    first = found(urls[1], say=said.append)
    assert any("going on with picture" in line for line in said)
    served.status = 503  # then what was packed from there is taken
    assert found(urls[2], say=said.append).path == first.path
    with pytest.raises(UserError, match="503"):
        found(urls[2].replace("id=7", "id=8"), say=said.append)


def test_what_names_a_file_where_no_signature_is_is_no_signature() -> None:
    for query in ("id=2", "sp=1&se=2", "expires=3", "", "q=a%26sig=b"):
        assert unsigned(f"http://x/y?{query}") == f"http://x/y?{query}"
    assert unsigned("http://x/y?sig=1&id=2&sp=1") == "http://x/y?id=2"
    assert unsigned("http://x/y?sig=1") == unsigned("http://x/y") == "http://x/y"


SECRET = "s3cret"
NO_URLS = {
    "a password": (f"http://user:{SECRET}@127.0.0.1/p.tar", "has an '@' before its path, and is not shown"),
    "a password without a path": (f"http://user:{SECRET}@127.0.0.1", "has an '@' before its path, and is not shown"),
    "a password with a slash": (f"http://user:{SECRET}/x@127.0.0.1/p.tar", "no URL that can be read"),
    "a port that is none": (f"http://127.0.0.1:{SECRET}/p.tar", "no URL that can be read"),
    "port 0": (f"http://127.0.0.1:0/p.tar?{SECRET}", "no URL that can be read"),
    "a bracket": (f"http://[::1/p.tar?{SECRET}", "no URL that can be read"),
    "no host": (f"https:///p.tar?{SECRET}", "no URL that can be read"),
    "a space": (
        f"http://127.0.0.1:1/p.tar?sig={SECRET} &x=1",
        "no URL that can be read; in one a space is",
    ),
    "a line's end": (f"http://127.0.0.1:1/p.tar?sig={SECRET}\nmore", "no URL that can be read"),
    "a host that is no name": (f"http://{'ä' * 70}.example/p.tar?{SECRET}", "^p.tar: .* no URL that can be read"),
    "in a store": (f"ftp://user:{SECRET}@127.0.0.1/p.tar", r"^ftp://\.\.\.: no source"),
    "a file's": ("file://[x/p.tar", "names another machine"),
    "a file's with a NUL": ("file:///x%00y", "no source that can be read here"),
}


@pytest.mark.parametrize("name", NO_URLS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_address_that_is_none_is_told_in_a_line_that_holds_no_secret(kind: str, name: str, tmp_path: Path) -> None:
    dataset, _, options = KINDS[kind]
    source, why = NO_URLS[name]
    for act in (pack, partial(locate, cache=tmp_path / "cache")):
        with pytest.raises(UserError, match=why) as told:
            act(dataset, source, tmp_path / "out", options=options, say=lambda line: None)  # type: ignore[operator]
        assert (told.value.code, str(told.value).isprintable()) == (78, True)
        assert SECRET not in str(told.value)


def test_weights_and_whatever_else_is_fetched_are_held_to_the_same(tmp_path: Path) -> None:
    with scratch(tmp_path) as file, pytest.raises(UserError, match="is not shown") as told:
        fetch(f"http://user:{SECRET}@127.0.0.1/x.pth", file, Pulse())
    assert SECRET not in str(told.value)


def test_a_redirection_to_what_is_no_url_is_told_without_it(served: Served, tmp_path: Path) -> None:
    served.status, served.headers = 302, {"Location": f"http://127.0.0.1:{SECRET}/x.tar"}
    with pytest.raises(UserError, match=r"^x\.tar: .* no URL that can be read") as told:
        pack(SMALL, f"{served.url}/x.tar", tmp_path / "out", say=lambda line: None)
    assert SECRET not in str(told.value)


def test_a_name_that_is_not_ascii_is_asked_for_as_it_is_written_in_urls(served: Served, tmp_path: Path) -> None:
    served.content = small_pictures(tmp_path)
    for url, asked in (
        ("/Bücher/ß.tar?q=ä&r=%20", "/B%C3%BCcher/%C3%9F.tar?q=%C3%A4&r=%20"),
        ("/\udce4.tar", "/%E4.tar"),
    ):
        assert not pack(SMALL, served.url + url, tmp_path / "out", say=lambda line: None).synthetic
        assert served.asked[-1] == asked


TROUBLES: dict[str, tuple[dict[str, object], int]] = {
    "hang": ({"hang": "before"}, 74),
    "hang within": ({"hang": "within"}, 74),
    "cut": ({"cut": 100}, 74),
    "overloaded": ({"status": 503}, 74),
    "too many requests": ({"status": 429}, 74),
    "not there": ({"status": 404}, 78),
    "forbidden": ({"status": 403}, 78),
    "a web page": ({"headers": {"Content-Type": "text/html"}}, 78),
    "no archive": ({"content": b"hello" * 1000}, 78),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_may_pass_ends_with_the_code_for_trying_again(
    kind: str, trouble: str, served: Served, tmp_path: Path
) -> None:
    dataset, _, options = KINDS[kind]
    served.content = bytes(500_000)
    wrong, code = TROUBLES[trouble]
    for name, value in wrong.items():
        setattr(served, name, value)
    with pytest.raises(UserError) as told:
        pack(dataset, f"{served.url}/x.tar", tmp_path / "out", options=options, say=lambda line: None)
    assert told.value.code == code, told.value


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (ConnectionRefusedError(111, "Connection refused"), 74),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), 74),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), 78),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), 78),
        ("unknown url type: ftp", 78),
    ],
)
def test_a_name_that_is_none_and_a_wrong_certificate_dont_pass(reason: object, code: int) -> None:
    """Made here: neither a name server nor a certificate's issuer is at hand."""
    assert download._plain("x.tar", urllib.error.URLError(reason), 1.0).code == code  # type: ignore[arg-type]


def official(served: Served, folder: Path) -> Dataset:
    path, dataset = python_archive(folder, small_splits())
    served.content = path.read_bytes()
    return replace(dataset, python=Archive(f"{served.url}/{path.name}", dataset.python.md5))


def test_no_source_means_the_official_archive(served: Served, tmp_path: Path) -> None:
    dataset = official(served, tmp_path)
    packed = pack(dataset, None, tmp_path / "out", say=lambda line: None)
    assert (packed.synthetic, packed.origin.kind) == (False, "python archive")
    pack(dataset, None, tmp_path / "out", say=lambda line: None)
    pack(dataset, dataset.python.url, tmp_path / "out", say=lambda line: None)
    assert len(served.asked) == 1  # packed data is not fetched again


@pytest.mark.parametrize("trouble", ["404", "hang", "refused", "cut", "changed", "web page"])
def test_no_source_and_no_official_archive_means_loudly_synthetic(
    served: Served, tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = official(served, tmp_path)
    match trouble:
        case "404":
            served.status = 404
        case "hang":
            served.hang = "before"
        case "refused":
            dataset = replace(dataset, python=Archive(f"http://127.0.0.1:{closed_port()}/x.tar.gz", "0" * 32))
        case "cut":
            served.cut = 100
        case "changed":
            served.content = b"something else"
        case "web page":
            served.headers = {"Content-Type": "text/html; charset=utf-8"}
    said: list[str] = []
    packed = pack(dataset, None, tmp_path / "out", say=said.append)
    assert packed.synthetic
    assert any("SYNTHETIC stand-in instead" in line for line in said)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("damage", ["rotten", "cut"])
def test_no_stand_in_comes_unasked_over_real_data_even_damaged(served: Served, tmp_path: Path, damage: str) -> None:
    dataset, out = official(served, tmp_path), tmp_path / "out"
    packed = pack(dataset, None, out, say=lambda line: None).path
    kept = rotten(packed) if damage == "rotten" else packed.read_bytes()[:-100]
    packed.write_bytes(kept)
    served.status = 404
    with pytest.raises(UserError, match=r"packed\.safetensors: of no use.*--source.*or remove that file") as caught:
        pack(dataset, None, out, say=lambda line: None)
    assert caught.value.code == 78
    assert packed.read_bytes() == kept
    assert pack(dataset, "synthetic", out, say=lambda line: None).synthetic  # asked for, it comes
    packed.write_bytes(rotten(packed))
    assert pack(dataset, None, out, say=lambda line: None).synthetic  # and may come anew over another


def rotten(packed: Path) -> bytes:
    raw = bytearray(packed.read_bytes())
    raw[-100_000] ^= 1  # in a picture: labels come last
    return bytes(raw)


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_a_404_is_told(served: Served, tmp_path: Path) -> None:
    served.status = 404
    refused(f"{served.url}/x.tar.gz", tmp_path / "out", r"x\.tar\.gz: the server answers 404 Not Found")


def test_a_web_page_is_told(served: Served, tmp_path: Path) -> None:
    served.content, served.headers = b"<html>sign in</html>", {"Content-Type": "text/html"}
    refused(f"{served.url}/x.tar.gz", tmp_path / "out", "a web page, not an archive")


def test_a_download_cut_short_is_told(served: Served, tmp_path: Path) -> None:
    served.content, served.cut = bytes(500_000), 1000
    refused(f"{served.url}/x.tar.gz", tmp_path / "out", "ended early, after 499,000 of 500,000 bytes")


def test_what_is_no_archive_is_told_by_its_own_name(served: Served, tmp_path: Path) -> None:
    served.content = b"hello" * 1000
    refused(f"{served.url}/x.tar.gz", tmp_path / "out", r"^x\.tar\.gz: not a kind of file")


def test_what_is_wrong_within_is_told_by_its_own_name(served: Served, tmp_path: Path) -> None:
    for kind, (dataset, made, options) in KINDS.items():
        (tmp_path / kind).mkdir()
        served.content = made(tmp_path / kind)[:20_000]
        with pytest.raises(UserError, match=r"^x\.tar: ends early"):
            pack(dataset, f"{served.url}/x.tar", tmp_path / "out", options=options, say=lambda line: None)


def test_refused_and_unknown_hosts_are_told(tmp_path: Path) -> None:
    refused(f"http://127.0.0.1:{closed_port()}/x.tar.gz", tmp_path / "out", "can't be fetched: Connection refused")
    refused("http://nowhere.invalid/x.tar.gz", tmp_path / "out", r"x\.tar\.gz: (can't be fetched|no answer)")


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_silent_server_is_left_in_time(served: Served, tmp_path: Path, where: str) -> None:
    served.content, served.hang = bytes(500_000), where
    began = time.monotonic()
    refused(f"{served.url}/x.tar.gz", tmp_path / "out", "no answer in 1 s")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_notice_ends_a_hung_download_at_once(served: Served, tmp_path: Path, where: str) -> None:
    served.content, served.hang = bytes(500_000), where
    looks: list[float] = []

    def check() -> None:
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pack(SMALL, f"{served.url}/x.tar.gz", tmp_path / "out", check=check, say=lambda line: None)
    assert looks[-1] - looks[0] < 2
    assert nothing_left(tmp_path / "out")


def test_a_redirection_leads_to_http_alone(served: Served, tmp_path: Path) -> None:
    served.status, served.headers = 302, {"Location": f"file://{tmp_path}/x.tar.gz"}
    refused(f"{served.url}/x.tar.gz", tmp_path / "out", r"x\.tar\.gz: ")


def test_a_file_address_is_read_in_place(tmp_path: Path) -> None:
    path = tar(tmp_path / "with space.tar", tree(small_splits()), "w")
    packed = pack(SMALL, f"file://{tmp_path}/with%20space.tar", tmp_path / "out", say=lambda line: None)
    assert packed.origin.name == path.name
    with pytest.raises(UserError, match="names another machine"):
        pack(SMALL, "file://elsewhere/x.tar", tmp_path / "out", say=lambda line: None)


def test_a_failed_download_is_known_from_a_full_disk() -> None:
    assert issubclass(DownloadError, UserError)  # pack(None) takes the stand-in for the first alone


def test_an_official_name_with_other_content_is_never_packed(served: Served, tmp_path: Path) -> None:
    dataset = official(served, tmp_path)
    served.content = tar(tmp_path / "x.tar", tree(small_splits(3)), "w").read_bytes()  # readable, but not it
    refused(dataset.python.url, tmp_path / "out", "what came isn't it by its MD5", dataset)
    assert pack(dataset, None, tmp_path / "out", say=lambda line: None).synthetic
