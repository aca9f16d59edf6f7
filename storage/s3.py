"""`s3://bucket/prefix`: Amazon S3, and any server that speaks its protocol (AWS_ENDPOINT_URL_S3).

Bytes are checked both ways by CRC32 of the whole object, the SDK's own default: it costs a seventh of what TLS does,
needs no native library, and unlike SHA-256 S3 keeps it of a multipart object as a whole.
"""

from __future__ import annotations

import base64
import io
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO

from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]
from botocore import exceptions as sdk  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from s3transfer.manager import TransferManager  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from storage.errors import NONSENSE, Damaged, InvalidURL, NotFound, StoreError, Unavailable
from storage.headers import moment_of, size_told
from storage.protocol import MAX_KEY_BYTES, ObjectInfo, Source, check_key, check_prefix, is_key
from storage.reader import Reader
from storage.room import Room
from storage.s3_client import connect, sends_checksums
from storage.s3_errors import code_of, meaning

PART = 8 << 20  # bytes; an object of so many and more goes in parts of so many, side by side
PARALLEL = 4  # parts of what is read in memory; with those of four callers at once, seven
UPLOADS = 4  # and while writing, of all puts together; the SDK keeps one more
CONNECTIONS = 32  # kept open: 5 who put, 4 who get, what they do side by side, and small requests
CONFLICT_TRIES = 5
MOST_AT_ONCE = 5 << 30  # bytes; S3 takes no more in one request

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_PREFIX_BYTES = 1024 - MAX_KEY_BYTES - 1


class S3Store:
    def __init__(self, url: str, *, patience: Callable[[], float] = lambda: 20.0) -> None:
        """`patience()`: the seconds that a request may wait for the next bytes of its answer; asked anew by each.

        Nothing is asked of the network before the first call. Raises `InvalidURL`.
        """
        bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise InvalidURL(
                f"{url}: an S3 store is written s3://bucket/prefix, the bucket with 3 to 63 small letters, digits, "
                "dots and hyphens"
            )
        if bucket.endswith("--x-s3"):
            raise InvalidURL(f"{url}: a directory bucket doesn't list in order; take a general purpose bucket")
        if prefix and not is_key(prefix, _MAX_PREFIX_BYTES):
            raise InvalidURL(f"{url}: the prefix is no key, or has more than {_MAX_PREFIX_BYTES} bytes")
        self.url = url
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience = patience
        self._reads = Room(PARALLEL)
        self._lock = threading.Lock()
        self._client: Any = None
        self._uploads: Any = None
        self._answered = False  # by whatever is of the store's name

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        check_key(key)
        body = Reader(source)
        if body.holds(PART) and not if_absent:  # outside: the source's own errors are not the store's
            return self._put_in_parts(key, body)
        whole = body.read(MOST_AT_ONCE)
        with self._told(key):
            reply = self._put_at_once(key, whole, if_absent)
            # by the store's clock, to a second; asking for what it will tell costs a request
            written = moment_of(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
            reply["ETag"]  # none: whatever took it, S3 did not
            if written is None:
                raise ValueError("a date that is none")
        return ObjectInfo(key, len(whole), written)

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        start, stop = byte_range or (0, 1 << 62)
        if start >= stop:  # HTTP has no way to ask for nothing
            return self.stat(key)
        with self._told(check_key(key)):
            first, size = self._first(key, start, stop)
        if first is None:
            return self.stat(key)
        crc = 0
        with closing(self._pieces(key, first, start, min(stop, size))) as pieces:
            for data in pieces:
                crc = zlib.crc32(data, crc)
                sink.write(data)  # outside: the sink's own errors are not the store's
                del data  # before the next one is fetched
        told = first.get("ChecksumCRC32", "-")
        # "-" is in the checksum of an object that another program put in parts: one of the parts' checksums
        if start == 0 and stop >= size and "-" not in told and told != _base64(crc):
            raise Damaged(f"{self.url}: {key} came with CRC32 {_base64(crc)}, and S3 has it with {told}")
        answered = moment_of(first["ResponseMetadata"]["HTTPHeaders"].get("date"))
        return ObjectInfo(key, size, first["LastModified"].timestamp(), answered)

    def stat(self, key: str) -> ObjectInfo:
        name = self._prefix + check_key(key)
        with self._told(key):
            try:
                return self._head(key)
            except sdk.ClientError:
                # the answer to a HEAD has a number, but no words; those to a GET tell a missing bucket from a
                # missing object, and dead credentials from missing rights
                self._s3().get_object(Bucket=self._bucket, Key=name, Range="bytes=0-0")["Body"].close()
                raise

    def _head(self, key: str) -> ObjectInfo:
        info = self._s3().head_object(Bucket=self._bucket, Key=self._prefix + key)
        return ObjectInfo(key, info["ContentLength"], info["LastModified"].timestamp())

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        if delimiter not in (None, "/"):
            raise ValueError(f"the delimiter can only be '/': {delimiter!r}")
        query = {"Bucket": self._bucket, "Prefix": self._prefix + check_prefix(prefix)}
        if delimiter:
            query["Delimiter"] = delimiter
        more = True
        while more:
            with self._told(prefix):
                page = self._s3().list_objects_v2(**query)
                found = list(self._holdable(page))
                more = page["IsTruncated"]
                if more:  # none, or the same: asked on, it would tell the same again, for ever
                    token = page["NextContinuationToken"]
                    if token == query.get("ContinuationToken"):
                        raise ValueError("the list goes on where it went on before")
                    query["ContinuationToken"] = token
            # S3 lists in this order, but gives a page's objects and prefixes apart
            yield from sorted(found, key=lambda info: info.key.encode())

    def delete(self, key: str) -> None:
        with self._told(check_key(key)):
            answer = self._s3().delete_object(Bucket=self._bucket, Key=self._prefix + key)
            if answer["ResponseMetadata"]["HTTPStatusCode"] == 204:
                return
        with suppress(NotFound):  # S3 answers with 204 alone, and so do most that speak its protocol
            self.stat(key)
            raise Unavailable(f"{self.url}: {key}: its deletion was answered with a success, and it is still there")

    def free_bytes(self) -> int | None:
        return None

    def caveat(self) -> str | None:
        return None

    def keeps_abandoned_uploads(self) -> bool | None:
        """Whether what a kill left of an upload in parts stays for good, unseen; None where one may not ask."""
        try:
            with self._told("the bucket's lifecycle"):
                rules = self._s3().get_bucket_lifecycle_configuration(Bucket=self._bucket)["Rules"]
                return not any(
                    rule["Status"] == "Enabled"
                    and "AbortIncompleteMultipartUpload" in rule
                    and self._prefix.startswith(rule.get("Filter", rule).get("Prefix", ""))
                    for rule in rules
                )
        except StoreError as e:
            none = isinstance(e.__cause__, sdk.ClientError) and code_of(e.__cause__) == "NoSuchLifecycleConfiguration"
            return True if none else None

    # --- writing

    def _put_at_once(self, key: str, body: bytes, if_absent: bool) -> Any:
        wanted: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        s3 = self._s3()
        if sends_checksums(s3):
            # as a header, which more servers take than the SDK's trailer; the algorithm, for those that store by it
            wanted |= {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": _base64(zlib.crc32(body))}
        for left in reversed(range(CONFLICT_TRIES)):
            try:
                # as a file, not bytes, it goes in small pieces, each with the whole time-out: a slow link is no fault
                return s3.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=io.BytesIO(body), **wanted)
            except sdk.ClientError as e:
                # another create or delete of this key was under way: neither won nor lost
                if not left or code_of(e) != "ConditionalRequestConflict":
                    raise
            time.sleep(random.uniform(0.05, 0.3))
        raise AssertionError

    def _put_in_parts(self, key: str, body: Reader) -> ObjectInfo:
        """By the SDK's own manager, which aborts the upload on any failure."""
        try:
            with self._told(key):
                self._upload(self._prefix + key, body)
                try:
                    info = self._head(key)  # the manager keeps its answers to itself
                except sdk.ClientError as e:
                    if code_of(e) != "404":
                        raise
                    raise Unavailable(f"{self.url}: {key}: was written, and is not there") from e
        except StoreError:
            if body.failure is not None:  # the source's own, which is not the store's
                raise body.failure from None
            raise
        if info.size != body.given:
            raise Damaged(f"{self.url}: {key}: {body.given} bytes were sent, and S3 has {info.size}")
        return info

    def _upload(self, name: str, body: Reader) -> None:
        extra = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if sends_checksums(self._s3()) else {}
        upload = self._uploads.upload(body, self._bucket, name, extra)
        try:
            upload.result()
        except BaseException:
            upload.cancel()
            raise

    # --- reading

    def _first(self, key: str, start: int, stop: int) -> tuple[Any, int]:
        """The answer that holds the first bytes, and the object's size; None if the object has none there.

        From 0 on the whole object is asked for even where less is wanted, or the rest is then fetched in parts: its
        checksum comes only so (a range's may be another one, boto/botocore#3346), and no small object costs two
        requests. What is too much is not received, which costs the connection, once an object.
        """
        s3 = self._s3()
        if start:
            wanted = {"Range": f"bytes={start}-{min(stop, start + PART) - 1}"}
        else:
            wanted = {"ChecksumMode": "ENABLED"} if sends_checksums(s3) else {}
        try:
            first = s3.get_object(Bucket=self._bucket, Key=self._prefix + key, **wanted)
            first["LastModified"], first["ETag"]
            if start == 0 and "ContentRange" not in first:
                return first, first["ContentLength"]
            return first, size_told(first["ContentRange"], start)
        except sdk.ClientError as e:
            if code_of(e) == "InvalidRange":
                return None, 0
            raise

    def _pieces(self, key: str, first: Any, start: int, stop: int) -> Generator[bytearray]:
        """[start, stop) of the version that `first` is of, in order."""

        def work() -> Iterator[Callable[[], bytearray]]:
            yield partial(self._drained, key, first, min(PART, stop - start))
            for at in range(start + PART, stop, PART):
                yield partial(self._range, key, at, min(at + PART, stop), first["ETag"])

        with (
            ThreadPoolExecutor(PARALLEL, thread_name_prefix="s3") as pool,
            closing(self._reads.side_by_side(pool, work())) as pieces,
        ):
            yield from pieces

    def _range(self, key: str, start: int, stop: int, etag: str) -> bytearray:
        with self._told(key):
            reply = self._s3().get_object(
                Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag
            )
            size_told(reply["ContentRange"], start)
            return self._drained(key, reply, stop - start)

    def _drained(self, key: str, reply: Any, count: int) -> bytearray:
        """The first `count` bytes of an answer's body."""
        with self._told(key):
            return self._taken(reply, count)

    def _taken(self, reply: Any, count: int) -> bytearray:
        data, got = bytearray(count), 0
        with reply["Body"] as raw:  # urllib3's own stream; read to its end, it gives its connection back
            while piece := raw.read1(min(count - got, 256 << 10) or 1):
                data[got : got + len(piece)] = piece
                got += len(piece)
                if got == count < reply["ContentLength"]:
                    return data
        if got != count:
            raise Unavailable(f"{self.url}: an answer ended {count - got} bytes early")
        return data

    def _holdable(self, page: Any) -> Iterator[ObjectInfo]:
        """A page's objects and prefixes, but for what no store could hold, such as the console's "folder/"."""
        for item in page.get("Contents", ()):
            key = item["Key"].removeprefix(self._prefix)
            if is_key(key):
                # whole seconds, as all that S3 tells: Ceph's lists tell more, unlike its other answers
                yield ObjectInfo(key, item["Size"], float(int(item["LastModified"].timestamp())))
        for item in page.get("CommonPrefixes", ()):
            key = item["Prefix"].removeprefix(self._prefix)
            if is_key(key[:-1]):
                yield ObjectInfo(key, 0, 0.0)

    # --- the SDK

    def _s3(self) -> Any:
        """The one client, made when first needed: it finds the credentials, maybe by asking the network."""
        with self._lock:
            if self._client is None:
                self._client = connect(self.url, self._patience, CONNECTIONS)
                events = self._client.meta.events
                events.register("after-call.s3", self._note_answer)
                for operation in ("GetObject", "HeadObject"):
                    events.register(f"after-call.s3.{operation}", _check_object)
                for operation in ("PutObject", "UploadPart"):
                    events.register(f"after-call.s3.{operation}", _check_put)
                events.register("after-call.s3.CompleteMultipartUpload", _check_completion)
                config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=UPLOADS)
                config.max_in_memory_upload_chunks = UPLOADS
                config.max_submission_concurrency = 1  # each reads a part more, and waits with it
                # one for all puts, which share its threads and its memory; the other kind of manager that boto3 could
                # choose is native, with memory and retries of its own
                self._uploads = TransferManager(self._client, config)
            return self._client

    def _note_answer(self, **_: Any) -> None:
        self._answered = True

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what the SDK says into the store's own errors."""
        try:
            yield
        except (sdk.ClientError, sdk.BotoCoreError, ResponseParserError, HTTPError) as e:
            raise meaning(e, self.url, self._bucket, key, known=self._answered) from e
        except NONSENSE as e:
            raise Unavailable(f"{self.url}: {key or 'list'}: what answered is not S3, but something in between") from e


def _check_object(http_response: Any, **_: Any) -> None:
    """Raise ValueError for a page in S3's stead: it may have a date, a tag and a length like any object.

    S3 says its request's name with each answer, but not all who speak its protocol do.
    """
    told = {name.lower(): value for name, value in http_response.headers.items()}
    is_page = told.get("content-type", "").lower().startswith("text/html")
    if http_response.status_code < 300 and is_page and not any(name.startswith("x-amz-") for name in told):
        raise ValueError("a page")


def _check_put(http_response: Any, **_: Any) -> None:
    """Raise ValueError for what has words to say to bytes that it should take in silence, as web servers do."""
    if http_response.status_code < 300 and http_response.content:
        raise ValueError("words")


def _check_completion(parsed: dict[str, Any], **_: Any) -> None:
    """Raise KeyError for a page in S3's stead, which the manager, as it looks at nothing of it, takes for success."""
    if "Error" not in parsed:
        parsed["ETag"]


def _base64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()
