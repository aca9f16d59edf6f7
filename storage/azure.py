"""`az://account/container/prefix`: runs in Azure Blob Storage, as block blobs. storage/azure_login.py says who asks.

On the way up Azure checks the MD5 of each request. On the way down a whole object is held to the CRC32C in its
metadata, which costs a thirtieth of MD5 and lets ranges be long; a part of one, or another program's, to the MD5 of
each range.
"""

from __future__ import annotations

import io
import logging
import re
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import google_crc32c
import requests
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, DeserializationError, HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobBlock, BlobClient, BlobPrefix, BlobProperties, ContainerClient, ExponentialRetry

from storage.azure_errors import code_of, meaning, not_azures
from storage.azure_login import log_in
from storage.errors import NONSENSE, AlreadyExists, Damaged, InvalidKey, InvalidURL, NotFound, Unavailable
from storage.headers import moment_of, size_told
from storage.pace_requests import PacedAdapter
from storage.protocol import ObjectInfo, Source, check_key, check_prefix, is_key
from storage.reader import Reader
from storage.room import Room

BLOCK_BYTES = 8 << 20  # one request of an upload; over 4 MiB Azure takes blocks at its full pace
RANGE_BYTES = 5 << 20  # one request of a download, after a first one of BLOCK_BYTES, which mostly is all
MD5_RANGE_BYTES = 4 << 20  # and one that is checked by itself: Azure tells the MD5 of no longer range (Get Blob)
BLOCKS = 3  # sent at once, each in memory; with those of five callers at once, seven
RANGES = 3  # read at once, each in memory; with those of four callers at once, six, and each caller's first request
CONNECTIONS = 32  # kept open: 5 who put, 4 who get, what their rooms hold beside, and small requests
PIECE_BYTES = 64 << 10  # sent at once, see _Transport
CONNECT_S = 5.0
CRC32C = "crc32c"  # the name in an object's metadata

# The SDK warns of what is told as an error here; without a handler its lines would go to stderr.
logging.getLogger("azure").addHandler(logging.NullHandler())

_URL = re.compile(r"az://([a-z0-9]{3,24})/([a-z0-9](?:-?[a-z0-9]){2,62})(?:/(.*?))?/?")


class AzureStore:
    def __init__(self, url: str, *, patience: Callable[[], float] = lambda: 20.0) -> None:
        """`patience` gives the seconds that one request may wait for an answer; it is asked anew for each.

        Raises `InvalidURL`, and `NotSetUp` for credentials that can be seen to be none.
        """
        match = _URL.fullmatch(url)
        if not match:
            raise InvalidURL(
                f"{url}: a store on Azure is written az://account/container/prefix, the account with 3 to 24 small "
                "letters and digits, the container with 3 to 63 of these, or hyphens between them"
            )
        self.url = url
        account, container, prefix = match.groups()
        self._place = f"az://{account}/{container}"
        self._root = ""
        if prefix:
            try:
                self._root = check_key(prefix) + "/"
            except InvalidKey as e:
                raise InvalidURL(f"{url}: the prefix is {e}") from e
        self._blocks, self._ranges = Room(BLOCKS), Room(RANGES)
        self._login = log_in(account, url)
        self._transport = _Transport(patience)
        self._container = ContainerClient(
            self._login.endpoint,
            container,
            self._login.credential,
            transport=self._transport,
            retry_policy=_Once(),
            permit_redirects=False,  # Azure sends none; what does would be given the token
            max_single_put_size=BLOCK_BYTES,
            max_block_size=BLOCK_BYTES,
            max_single_get_size=BLOCK_BYTES,
            max_chunk_get_size=BLOCK_BYTES,
            user_agent="baton",
        )

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        stream = Reader(source)
        if stream.holds(BLOCK_BYTES):  # outside: the source's own errors are not the store's
            return self._put_blocks(key, stream, if_absent)
        return self._put_at_once(key, stream.read(BLOCK_BYTES), if_absent)

    def _put_at_once(self, key: str, body: bytes, if_absent: bool) -> ObjectInfo:
        blob = self._blob(key)
        with self._creating(key):
            told = blob.upload_blob(
                body,
                overwrite=not if_absent,
                metadata={CRC32C: f"{google_crc32c.value(body):08x}"},
                validate_content=True,
            )
            return ObjectInfo(key, len(body), told["last_modified"].timestamp())

    def _put_blocks(self, key: str, stream: Reader, if_absent: bool) -> ObjectInfo:
        """In blocks side by side, and a list that makes them the object.

        Not by upload_blob, whose blocks are named by their number alone: two who write one key would mix theirs, and
        what is known once all is read could not go into the metadata. What a failed upload leaves is blocks that no
        list names: nobody sees them, and Azure drops them after a week.
        """
        blob, names, crc = self._blob(key), list[str](), 0
        mine = uuid.uuid4().hex

        def work() -> Iterator[Callable[[], None]]:
            nonlocal crc
            while block := stream.read(BLOCK_BYTES):
                crc = google_crc32c.extend(crc, block)
                names.append(f"{mine}{len(names):06d}")
                stage = partial(self._stage, key, blob, names[-1], block)
                del block
                yield stage
                del stage  # before the next one is read

        with (
            ThreadPoolExecutor(BLOCKS, thread_name_prefix="azure-put") as pool,
            closing(self._blocks.side_by_side(pool, work())) as staged,
        ):
            for _ in staged:
                pass
        with self._creating(key):
            told: dict[str, Any] = blob.commit_block_list(
                [BlobBlock(name) for name in names],
                metadata={CRC32C: f"{crc:08x}"},
                validate_content=True,
                match_condition=MatchConditions.IfMissing if if_absent else None,
            )
            return ObjectInfo(key, stream.given, told["last_modified"].timestamp())

    def _stage(self, key: str, blob: BlobClient, name: str, block: bytes) -> None:
        with self._translated(key, "blobs/write", "cw"):
            blob.stage_block(name, block, validate_content=True)

    @contextmanager
    def _creating(self, key: str) -> Iterator[None]:
        with self._translated(key, "blobs/write", "cw"):
            try:
                yield
            except HttpResponseError as e:
                if code_of(e) == "BlobAlreadyExists":
                    raise AlreadyExists(f"{key}: already there") from e
                raise

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        start, stop = byte_range or (0, None)
        if stop is not None and stop <= start:
            return self.stat(key)
        most = start + (MD5_RANGE_BYTES if start else BLOCK_BYTES)
        first = self._range(key, start, most if stop is None else min(stop, most), None, md5=start > 0)
        if first is None:
            info = self.stat(key)
            if info.size > start:
                raise Unavailable(f"{key}: was replaced while being read")
            return info
        data, properties, answered = first
        del first
        info = replace(self._info(key, properties), answered=answered)
        stop = min(info.size, info.size if stop is None else stop)
        wanted = (properties.metadata or {}).get(CRC32C) if stop - start == info.size else None
        if start == 0 and wanted is None:
            data = self._part(key, 0, min(stop, MD5_RANGE_BYTES), properties.etag, md5=True)
        crc = 0
        beginning = [data]
        del data  # `beginning` lets it go once it is written
        with closing(self._pieces(key, beginning, start, stop, properties.etag, md5=wanted is None)) as pieces:
            for piece in pieces:
                crc = google_crc32c.extend(crc, piece)
                sink.write(piece)  # outside of _translated: the sink's own errors are not the store's
                del piece  # before the next one is fetched
        if wanted is not None and wanted != f"{crc:08x}":
            raise Damaged(f"{self._place}: {key} came with CRC32C {crc:08x}, and its metadata says {wanted:.20}")
        return info

    def _pieces(self, key: str, first: list[bytes], start: int, stop: int, etag: str, *, md5: bool) -> Generator[bytes]:
        """The bytes of [start, stop) of the version `etag`, in order: `first`, emptied, then ranges side by side."""
        start += sum(map(len, first))
        step = MD5_RANGE_BYTES if md5 else RANGE_BYTES
        rest = (
            partial(self._part, key, offset, min(offset + step, stop), etag, md5=md5)
            for offset in range(start, stop, step)
        )
        with (
            ThreadPoolExecutor(RANGES, thread_name_prefix="azure-get") as pool,
            closing(self._ranges.side_by_side(pool, rest, (first.pop() for _ in range(len(first))))) as pieces,
        ):
            yield from pieces

    def _part(self, key: str, start: int, stop: int, etag: str, *, md5: bool) -> bytes:
        part = self._range(key, start, stop, etag, md5=md5)
        if part is None or len(part[0]) != stop - start:
            raise Unavailable(f"{key}: {self._place} gave other bytes than those from {start} to {stop}")
        return part[0]

    def _range(
        self, key: str, start: int, stop: int, etag: str | None, *, md5: bool
    ) -> tuple[bytes, BlobProperties, float | None] | None:
        """The bytes of [start, stop) by one request, checked against their MD5 or not, and when they were given.

        None where the object ends before.
        """
        same: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
        blob, answered = self._blob(key), list[str | None]()

        def heard(response: Any) -> None:
            # while errors are the request's own: later, the SDK would wait and ask again by itself
            response.http_response.body()
            if response.http_response.status_code < 300:
                size_told(response.http_response.headers["Content-Range"], start)
            answered.append(response.http_response.headers.get("Date"))

        with self._translated(key, "blobs/read", "r"):
            try:
                stream = blob.download_blob(start, stop - start, validate_content=md5, raw_response_hook=heard, **same)
                body = b"".join(stream.chunks())  # not readall, which copies it
                if len(body) > stop - start:
                    raise not_azures(self._place, key)
                return body, stream.properties, moment_of(answered[-1] if answered else None)
            except HttpResponseError as e:
                if e.status_code == 416:
                    return None
                if e.status_code == 412:
                    raise Unavailable(f"{key}: was replaced while being read") from e
                raise

    def stat(self, key: str) -> ObjectInfo:
        blob = self._blob(key)
        with self._translated(key, "blobs/read", "r"):
            return self._info(key, blob.get_blob_properties())

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        if delimiter not in (None, "/"):
            raise ValueError(f"the delimiter can only be '/': {delimiter!r}")
        start = self._root + check_prefix(prefix)
        found = []
        with self._translated(prefix or ".", "blobs/read", "l"):
            ask = self._container.walk_blobs if delimiter else self._container.list_blobs
            pages: Any = ask(start or None, include=["metadata"]).by_page()
            marker = None
            for page in pages:
                if marker is not None and marker == pages.continuation_token:  # it would tell the same again, for ever
                    raise ValueError("the list goes on where it went on before")
                marker = pages.continuation_token
                for item in page:
                    key = item.name.removeprefix(self._root)
                    if isinstance(item, BlobPrefix):
                        if is_key(key[:-1]):
                            found.append(ObjectInfo(key, 0, 0.0))
                    elif is_key(key) and not _is_folder(item):  # else another program's object
                        found.append(ObjectInfo(key, item.size, item.last_modified.timestamp()))
        # Azure's manual says "alphabetical" of the order, not by what, so nothing is told before all is known
        yield from sorted(found, key=lambda info: info.key.encode())

    def delete(self, key: str) -> None:
        blob = self._blob(key)
        with suppress(NotFound), self._translated(key, "blobs/delete", "d"):
            blob.delete_blob()

    def free_bytes(self) -> int | None:
        return None

    def caveat(self) -> str | None:
        return None

    def _blob(self, key: str) -> BlobClient:
        return self._container.get_blob_client(self._root + check_key(key))

    def _info(self, key: str, properties: BlobProperties) -> ObjectInfo:
        if properties.last_modified is None:
            raise not_azures(self._place, key)
        if _is_folder(properties):
            raise NotFound(f"{key}: not there")
        whole = properties.content_range  # of a range's answer: "bytes 0-9/100"
        size = int(whole.rpartition("/")[2]) if whole else properties.size
        return ObjectInfo(key, size, properties.last_modified.timestamp())

    @contextmanager
    def _translated(self, key: str, action: str, sas: str) -> Iterator[None]:
        """Turn what the SDK raises into the store's own errors; `action` and `sas` are what Azure calls the right."""
        try:
            yield
        except (AzureError, requests.RequestException) as e:
            known = self._transport.answered
            raise meaning(e, key, self._place, self._login, action, sas, known=known) from e
        except (DeserializationError, *NONSENSE) as e:  # the SDK's, of what isn't Azure's
            raise not_azures(self._place, key) from e


class _Once(ExponentialRetry):
    """No second try, and a name of our own for the request.

    The SDK would take one by uuid1(), for which libuuid, where it may write /var/lib/libuuid (as root), opens a file
    and keeps it for each thread that ever asks. Each save has new threads: after a day no more files could be opened.
    """

    def __init__(self) -> None:
        super().__init__(retry_total=0)

    def send(self, request: Any) -> Any:
        request.context.options["client_request_id"] = str(uuid.uuid4())
        return super().send(request)  # type: ignore[no-untyped-call]


class _Transport(RequestsTransport):  # type: ignore[misc]  # the SDK hands it out untyped
    """The SDK's transport, with time-outs that are asked for anew, bodies sent in pieces, and no success but Azure's.

    The time-out for connecting also bounds each piece that is sent: a block of 8 MB, sent as one, would fail on any
    link that takes longer than 5 s for it.
    """

    def __init__(self, patience: Callable[[], float]) -> None:
        session = requests.Session()
        for scheme in ("https://", "http://"):
            session.mount(scheme, PacedAdapter(patience, CONNECTIONS, piece=PIECE_BYTES))
        super().__init__(session=session)
        self._patience = patience
        self.answered = False  # Azure has, at least once

    def send(self, request: Any, **kwargs: Any) -> Any:
        wait = self._patience()
        kwargs.update(connection_timeout=min(CONNECT_S, wait), read_timeout=wait)
        body = request.data
        if isinstance(body, bytes) and len(body) > PIECE_BYTES:
            request.data = io.BytesIO(body)
        try:
            answer = super().send(request, **kwargs)
        finally:
            request.data = body  # the SDK sends the same request again where a token is refused
        is_azures = "x-ms-request-id" in answer.headers  # each has it
        self.answered |= is_azures
        if answer.status_code < 300 and not is_azures:
            raise ValueError("a success that is not Azure's")
        if request.method == "GET" and "comp=" not in request.url:  # an object, wanted as it is stored
            # The SDK's own `decompress=False` is too late: its check of the MD5 has the whole body decoded before.
            answer.internal_response.raw.headers.pop("Content-Encoding", None)
        return answer


def _is_folder(properties: BlobProperties) -> bool:
    """Accounts with a hierarchical namespace show folders as blobs that say so."""
    return bool(properties.metadata) and properties.metadata.get("hdi_isfolder") == "true"
