"""`gs://bucket/prefix`: runs in Google Cloud Storage.

How bytes travel, and why so:

- Up to 8 MB, and whatever is created if absent: one request, with a CRC32C, which the service checks. The same as the
  SDK's, but from the caller's memory: the SDK joins it all to one body, and copies the bytes three times for that.
- More: an XML multipart upload, the one that the SDK's transfer_manager.upload_chunks_concurrently makes. That
  itself takes a file's name (googleapis/python-storage#1341, #1464), which for a state in memory means to write all of
  it to a disk first. So its few requests are made here, on the SDK's authorized session: parts of 8 MB, eight at once,
  each a view of the caller's memory with a CRC32C of its own, which the service checks. One connection carries less
  than a link, the more so from another cloud; a resumable upload, the SDK's other way, is one connection.
- Down: ranged reads of the XML API, the first of which tells size, generation, checksum and time, so that a small
  object costs one request (the SDK's own way asks for the metadata before). The rest follow in parallel, only of that
  generation. The whole object's CRC32C is checked while it passes.

An emulator (STORAGE_EMULATOR_HOST) may know the JSON API alone: what it doesn't take as above is asked of that.

`modified` is in whole seconds: downloads tell no more. The SDK's retries are off; a wrapper over the protocol retries.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, BinaryIO
from urllib.parse import quote
from xml.sax.saxutils import escape, unescape

# Both are read when the SDK is imported.
# One look of three seconds at the metadata service is enough: where it doesn't answer, the SDK reads from the firmware
# whether this is Google's machine. Its own three looks take 12 s on machines that drop packets to that address.
os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
# Else the SDK asks for the bucket too, beside our requests in a thread of its own, to adorn traces that nobody reads.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

import google_crc32c
import requests
from google.api_core.client_info import ClientInfo
from google.cloud.storage import Client  # type: ignore[import-untyped]

from storage.errors import NONSENSE, AlreadyExists, Damaged, InvalidKey, InvalidURL, NotFound, StoreError, Unavailable
from storage.gcs_emulated import NOT_KNOWN, ask_json
from storage.gcs_errors import SDK_ERRORS, meaning
from storage.gcs_login import find_credentials
from storage.gcs_wire import (
    AS_STORED,
    PART_BYTES,
    PIECE_BYTES,
    Body,
    Found,
    Session,
    crc32c,
    lanes,
    parts_of,
    readable,
    receive,
)
from storage.headers import moment_of, size_told
from storage.protocol import ObjectInfo, Source, check_key, check_prefix, is_key, views
from storage.room import Room

WRITES = 8  # parts sent at once; they take no memory here, but a connection each
READS = 4  # parts of what is read in memory; with those of four callers at once, seven
MAX_PREFIX_BYTES = 100  # a name may have 1,024 bytes, 900 of which are the key's

_STRANGER = "something between here and Google answered in its stead"


class GoogleStore:
    def __init__(self, url: str, *, patience: Callable[[], float] = lambda: 20.0) -> None:
        """`url` is `gs://bucket/prefix`; the prefix may be left out. `patience` gives the seconds that one request
        may wait for an answer. Raises `InvalidURL`, and `NotSetUp` where there are no credentials."""
        bucket, _, prefix = url.removeprefix("gs://").rstrip("/").partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
            raise InvalidURL(
                f"{url}: a Google store is written gs://bucket/prefix, the bucket with 3 to 222 small letters, digits, "
                "dots, hyphens and underscores"
            )
        try:
            self._prefix = f"{check_key(prefix)}/" if prefix else ""
        except InvalidKey as e:
            raise InvalidURL(f"{url}: {prefix!a} can't be the beginning of keys") from e
        if len(self._prefix.encode()) > MAX_PREFIX_BYTES:
            raise InvalidURL(f"{url}: the prefix is longer than {MAX_PREFIX_BYTES} bytes")
        self.url = url
        self._bucket = bucket
        self._emulated = bool(os.environ.get("STORAGE_EMULATOR_HOST"))
        # Neither: it is not known yet which of the two is spoken here.
        self._reads_xml, self._reads_json = not self._emulated, False
        self._writes, self._reads = Room(WRITES), Room(READS)
        with self._translated("", ""):
            credentials = find_credentials(url, patience)
            self._session = Session(credentials, patience)
            agent = ClientInfo(user_agent="baton")  # type: ignore[no-untyped-call]
            self._client = Client(project=None, credentials=credentials, _http=self._session, client_info=agent)

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        check_key(key)
        pieces = views(source)
        small: list[memoryview] = []
        size = 0
        for view in pieces:
            small.append(view)
            size += view.nbytes
            if size > PART_BYTES and not if_absent:
                return self._put_parts(key, chain(small, pieces))
        unmet = AlreadyExists if if_absent else Unavailable
        with self._translated(key, "storage.objects.create", absent=Unavailable, unmet=unmet):
            return self._whole(self._put_at_once(key, small, if_absent), size)

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        start, stop = byte_range or (0, 1 << 62)
        if start >= stop:
            return self.stat(key)
        with self._translated(key, "storage.objects.get"):
            found = self._ask_range(key, start, min(stop, start + PART_BYTES))
        if found is None:  # nothing of it lies in the range
            return self.stat(key)
        crc = 0
        with closing(self._read(key, found, start, min(stop, found.info.size))) as pieces:
            for piece in pieces:
                crc = google_crc32c.extend(crc, readable(piece))
                sink.write(piece)  # outside: the sink's own errors are not the store's
                del piece  # before the next one is fetched
        if start == 0 and stop >= found.info.size and crc != found.crc:
            raise Damaged(f"{self.url}: {key}: what came differs from the CRC32C that the store tells")
        return found.info

    def stat(self, key: str) -> ObjectInfo:
        return self._stat(key, absent=NotFound)

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        if delimiter not in (None, "/"):
            raise ValueError(f"the delimiter can only be '/': {delimiter!r}")
        start = self._prefix + check_prefix(prefix)
        fields = "kind,nextPageToken,prefixes,items(name,size,timeCreated)"
        listing = self._client.list_blobs(
            self._bucket, prefix=start or None, delimiter=delimiter, fields=fields, retry=None
        )
        pages = listing.pages
        while True:
            token = listing.next_page_token
            with self._translated(prefix, "storage.objects.list", absent=Unavailable):
                page = next(pages, None)
                if page is None:
                    return
                page.raw_page["kind"]  # none: whatever answered, Google did not, and nothing is proven absent
                if token is not None and token == listing.next_page_token:  # it would tell the same again, for ever
                    raise ValueError("the list goes on where it went on before")
                found = [self._info(blob) for blob in page if is_key(self._key(blob.name))]
                found += [ObjectInfo(self._key(name), 0, 0.0) for name in page.prefixes if is_key(self._key(name)[:-1])]
            # Google gives a page's objects and prefixes apart
            yield from sorted(found, key=lambda info: info.key.encode())

    def delete(self, key: str) -> None:
        address = f"{self._client.api_endpoint}/storage/v1/b/{self._bucket}/o/{quote(self._name(key), safe='')}"
        with suppress(NotFound):
            with self._translated(key, "storage.objects.delete"):
                if self._session.ask("DELETE", address).status_code == 204:
                    return
            self.stat(key)  # Google answers with 204 alone; others' emulators with another success
            raise Unavailable(f"{self.url}: {key}: {_STRANGER}")

    def free_bytes(self) -> int | None:
        return None

    def caveat(self) -> str | None:
        return None

    def keeps_abandoned_uploads(self) -> None:
        """As on S3, but never known: to ask takes storage.buckets.get, which no role for objects alone has."""

    # --- names and what is told of them

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _key(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def _blob(self, key: str) -> Any:
        return self._client.bucket(self._bucket).blob(self._name(key))

    def _address(self, key: str) -> str:
        """The object's URL in the XML API."""
        return f"{self._client.api_endpoint}/{self._bucket}/{quote(self._name(key), safe='/~')}"

    def _info(self, blob: Any) -> ObjectInfo:
        created: datetime = blob.time_created
        return ObjectInfo(self._key(blob.name), int(blob.size), float(int(created.timestamp())))

    def _stat(self, key: str, *, absent: type[StoreError]) -> ObjectInfo:
        blob = self._blob(key)
        with self._translated(key, "storage.objects.get", absent=absent):
            blob.reload(retry=None)
            return self._info(blob)

    def _whole(self, info: ObjectInfo, size: int) -> ObjectInfo:
        if info.size != size:
            raise Damaged(f"{self.url}: {info.key}: {size} bytes were sent, the store has {info.size}")
        return info

    # --- up, at once or in many parts

    def _put_at_once(self, key: str, views: Sequence[memoryview], if_absent: bool) -> ObjectInfo:
        """The JSON API's upload in one request, which tells the object's name and CRC32C before its bytes."""
        about = {"name": self._name(key), "crc32c": crc32c(views)}
        mark = uuid.uuid4().hex
        head = f"--{mark}\r\nContent-Type: application/json\r\n\r\n{json.dumps(about)}\r\n--{mark}\r\n"
        head += "Content-Type: application/octet-stream\r\n\r\n"
        query = {"uploadType": "multipart"} | ({"ifGenerationMatch": "0"} if if_absent else {})
        answer = self._session.ask(
            "POST",
            f"{self._client.api_endpoint}/upload/storage/v1/b/{self._bucket}/o",
            params=query,
            data=Body([memoryview(head.encode()), *views, memoryview(f"\r\n--{mark}--\r\n".encode())]),
            headers={"Content-Type": f"multipart/related; boundary={mark}"},
        )
        told = answer.json()
        if told["name"] != about["name"]:
            raise ValueError("of another object")
        made = datetime.fromisoformat(told["timeCreated"])
        return ObjectInfo(self._key(told["name"]), int(told["size"]), float(int(made.timestamp())))

    def _put_parts(self, key: str, views: Iterable[memoryview]) -> ObjectInfo:
        address, size = self._address(key), 0
        with self._translated(key, "storage.multipartUploads.create", absent=Unavailable):
            fine = NOT_KNOWN if self._emulated else ()
            answer = self._session.ask("POST", address, params={"uploads": ""}, fine=fine)
            # an emulator's own way of it, which no namespace says, differs: fake-gcs-server wants a Date of each part
            googles = not self._emulated or " xmlns=" in answer.text
            found = re.search("<UploadId>([^<]+)<", answer.text) if googles else None
            if found is None and not self._emulated:
                raise Unavailable(f"{self.url}: {key}: {_STRANGER}")
        if found is None:
            whole = list(views)
            with self._translated(key, "storage.objects.create", absent=Unavailable):
                return self._whole(self._put_at_once(key, whole, False), sum(view.nbytes for view in whole))
        upload = {"uploadId": unescape(found[1])}
        stop = threading.Event()

        def work() -> Iterator[Callable[[], str]]:
            nonlocal size
            for number, part in enumerate(parts_of(views), 1):
                size += sum(view.nbytes for view in part)
                yield partial(self._put_part, key, {**upload, "partNumber": str(number)}, part, stop)

        try:
            with lanes(WRITES, stop) as pool:
                etags = list(self._writes.side_by_side(pool, work()))
            self._complete(key, upload, etags)
        except BaseException:
            with suppress(StoreError), self._translated(key, "storage.multipartUploads.abort"):
                self._session.ask("DELETE", address, params=upload)
            raise
        return self._whole(self._stat(key, absent=Unavailable), size)

    def _put_part(self, key: str, which: dict[str, str], part: Sequence[memoryview], stop: threading.Event) -> str:
        with self._translated(key, "storage.multipartUploads.create", absent=Unavailable):
            answer = self._session.ask(
                "PUT",
                self._address(key),
                params=which,
                data=Body(part, stop),
                headers={"x-goog-hash": f"crc32c={crc32c(part)}"},
            )
            if answer.content:
                raise ValueError("words to say to bytes that it should take in silence, as web servers have")
            return answer.headers["ETag"]  # none: whatever took it, Google did not

    def _complete(self, key: str, upload: dict[str, str], etags: Sequence[str]) -> None:
        rows = (f"<Part><PartNumber>{n}</PartNumber><ETag>{escape(e)}</ETag></Part>" for n, e in enumerate(etags, 1))
        body = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode()
        with self._translated(key, "storage.objects.create", absent=Unavailable):
            answer = self._session.ask("POST", self._address(key), params=upload, data=body)
        if b"<CompleteMultipartUploadResult" not in answer.content:
            raise Unavailable(f"{self.url}: {key}: {_STRANGER}")

    # --- many ranges down

    def _ask_range(
        self, key: str, start: int, stop: int, generation: str | None = None, into: memoryview | None = None
    ) -> Found | None:
        """Ask for [start, stop), of one generation only if it is given; None where the object ends before. What is
        received here already is put `into` the caller's memory, if there is some."""
        if self._reads_json:
            return ask_json(self._session, self._blob(key), self._info, start, stop, generation, into)
        headers = {"Range": f"bytes={start}-{stop - 1}", **AS_STORED}
        if generation is not None:
            headers["x-goog-if-generation-match"] = generation
        fine = (416,) if self._reads_xml else (416, *NOT_KNOWN)
        answer = self._session.ask("GET", self._address(key), headers=headers, stream=True, fine=fine)
        if answer.status_code == 416:
            answer.close()
            return None
        told = answer.headers
        try:
            size, modified = size_told(told["Content-Range"], start), moment_of(told["Last-Modified"])
            hashes = dict(item.strip().split("=", 1) for item in told["x-goog-hash"].split(","))
            crc = int.from_bytes(base64.b64decode(hashes["crc32c"]), "big")
            if modified is None:
                raise ValueError("a date that is none")
            info = ObjectInfo(key, size, modified, moment_of(told.get("Date")))
            found = Found(answer, info, min(stop, size), told["x-goog-generation"], crc)
            self._reads_xml = True
            return found
        except (KeyError, ValueError) as e:
            answer.close()
            if self._reads_xml:
                raise Unavailable(f"{self.url}: {key}: {_STRANGER}") from e
        of_json = ask_json(self._session, self._blob(key), self._info, start, stop, generation, into)
        self._reads_json = True
        return of_json

    def _read(self, key: str, first: Found, start: int, stop: int) -> Generator[memoryview, None, None]:
        """The bytes of [start, stop), the beginning of which `first` brings. A piece holds until the next one."""
        given_up = threading.Event()

        def work() -> Iterator[Callable[[], memoryview]]:
            for at in range(first.stop, stop, PART_BYTES):
                # made here: each thread that makes its own keeps memory that was freed for itself
                yield partial(ask, memoryview(bytearray(min(PART_BYTES, stop - at))), at)

        def ask(buffer: memoryview, at: int) -> memoryview:
            with self._translated(key, "storage.objects.get"):
                found = self._ask_range(key, at, min(stop, at + PART_BYTES), first.generation, buffer)
                if found is None:
                    raise Unavailable(f"{self.url}: {key}: shrank while it was read")
                return receive(found.answer, buffer[: found.stop - at], given_up)

        def beginning() -> Iterator[memoryview]:
            piece = memoryview(bytearray(min(PIECE_BYTES, first.stop - start)))
            for at in range(start, first.stop, PIECE_BYTES):
                with self._translated(key, "storage.objects.get"):
                    got = receive(first.answer, piece[: first.stop - at], given_up)
                yield got

        with lanes(READS, given_up) as pool, closing(self._reads.side_by_side(pool, work(), beginning())) as pieces:
            yield from pieces

    @contextmanager
    def _translated(
        self,
        key: str,
        permission: str,
        *,
        absent: type[StoreError] = NotFound,
        unmet: type[StoreError] = Unavailable,
    ) -> Iterator[None]:
        """Turn what the SDK says into the store's own errors: `absent` for 404, `unmet` for a failed condition."""
        try:
            yield
        except requests.exceptions.InvalidJSONError as e:
            raise Unavailable(f"{self.url}: {key}: {_STRANGER}") from e
        except SDK_ERRORS as e:
            more = {"emulated": self._emulated, "known": hasattr(self, "_session") and self._session.answered}
            raise meaning(e, self.url, self._bucket, key, permission, absent, unmet, **more) from e
        except StoreError:
            raise
        except NONSENSE as e:
            raise Unavailable(f"{self.url}: {key}: {_STRANGER}") from e
