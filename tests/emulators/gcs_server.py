"""gcp-storage-emulator, made fit to be held to what Google Cloud Storage promises.

    python tests/emulators/gcs_server.py --port 9100 --data FOLDER

Its JSON API for buckets, uploads (one request, resumable), metadata and deletion, with its CRC32C checks, is used as
it is. What this adds to it:

- many requests at once (a thread each, kept-alive connections), with one lock around the emulator's own handlers,
  none while bodies travel;
- generation preconditions: ifGenerationMatch and ifGenerationNotMatch on uploads, metadata, downloads and deletes;
- the XML API that transfer_manager.upload_chunks_concurrently speaks: multipart uploads (start, parts with
  x-goog-hash checked, completion with each part's ETag and the least part size checked, cancelling), and its
  conditional, ranged GET with x-goog-generation, x-goog-hash of the whole object and Last-Modified;
- the JSON API's downloads in the same way: the emulator reads the whole object for each range;
- what was put with Content-Encoding: gzip comes decompressed and whole, unless gzip is accepted;
- 204 for a deletion, where the emulator says 200;
- pages in lists: 1,000 names, prefixes counted too, or fewer if maxResults says so;
- the error bodies that Google sends, where the emulator sends none: "The specified bucket does not exist." and such;
- objects in files named by generation, and a journal instead of one JSON file written whole at each change: what was
  answered outlasts a SIGKILL, nothing half-written is seen, and thousands of keys don't take minutes;
- the body of a one-request upload is cut at its boundary instead of read by the e-mail parser (0.1 s a MB).

With `--xml emulators` the XML API is left to the emulator itself, as is all downloading: it has no multipart uploads
and tells nothing beside an object's bytes. With `--xml none` there is none. With `--xml loose` it is as fsouza's
fake-gcs-server has it: its answers have no namespace, and a part is refused without a Date. These stand for emulators
of others.

There is no versioning, no soft deletion, and nobody is refused: faults and refusals are tests/emulators/proxy.py's.
"""

from __future__ import annotations

import argparse
import base64
import calendar
import gzip
import io
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import google_crc32c
from gcp_storage_emulator import server, storage
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.objects import _make_object_resource as make_resource

PAGE = 1000
PIECE = 1 << 20
LEAST_PART = 5 << 20  # but for the last: cloud.google.com/storage/quotas
XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"  # as Google's own answers say
CONDITIONS = ("ifGenerationMatch", "ifGenerationNotMatch")
JSON_API = re.compile(r"/(storage/v1|(upload|download|batch)/storage)(/|$)|/$")
NOT_HELD = "At least one of the pre-conditions you specified did not hold."

LOCK = threading.RLock()


class ConditionNotMet(Exception):
    pass


class Storage(storage.Storage):
    """The emulator's, with conditions and a journal. All under `LOCK`."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.uploads = folder / "blobs", folder / "uploads"
        for made in (self.blobs, self.uploads):
            made.mkdir(parents=True, exist_ok=True)
        self.conditions: dict[str, str] = {}  # of the request that holds the lock
        self._promised: dict[str, dict[str, str]] = {}  # resumable upload -> conditions that it was started with
        super().__init__(data_dir=str(folder))
        self._journal = open(folder / "journal", "a+b")  # noqa: SIM115
        self._replay()

    def _write_config_to_file(self) -> None:
        pass  # the journal does it

    def _record(self, *entry: object) -> None:
        self._journal.write(json.dumps(entry).encode() + b"\n")
        self._journal.flush()

    def _replay(self) -> None:
        self._journal.seek(0)
        for line in self._journal.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # killed while writing it, so nobody was told
            kind, bucket, name, resource = json.loads(line)
            if kind == "bucket":
                self.buckets[bucket] = resource
            elif kind == "put":
                self.objects.setdefault(bucket, {})[name] = resource
            else:
                self.objects[bucket].pop(name, None)

    def check(self, bucket: str, name: str, conditions: dict[str, str]) -> None:
        generation = self.objects.get(bucket, {}).get(name, {}).get("generation", "0")
        if conditions.get("ifGenerationMatch", generation) != generation:
            raise ConditionNotMet
        if conditions.get("ifGenerationNotMatch") == generation:
            raise ConditionNotMet

    def create_bucket(self, bucket: str, resource: dict[str, Any]) -> dict[str, Any]:
        self.buckets[bucket] = resource
        self._record("bucket", bucket, "", resource)
        return resource

    def create_file(
        self, bucket: str, name: str, content: bytes, resource: dict[str, Any], file_id: str | None = None
    ) -> None:
        self.check(bucket, name, self._promised.pop(file_id, {}) if file_id else self.conditions)
        self.blob(resource).write_bytes(content)
        self.adopt(bucket, name, resource)
        if file_id:
            self.delete_resumable_file_obj(file_id)
            self._delete_file(storage.RESUMABLE_DIR, self.safe_id(file_id))

    def adopt(self, bucket: str, name: str, resource: dict[str, Any]) -> None:
        """Make an object of a file that lies in its place already."""
        if bucket not in self.buckets:
            raise NotFound
        old = self.objects.setdefault(bucket, {}).get(name)
        self.objects[bucket][name] = resource
        self._record("put", bucket, name, resource)
        if old:
            self.blob(old).unlink()

    def blob(self, resource: dict[str, Any]) -> Path:
        return self.blobs / resource["generation"]

    def create_resumable_upload(self, bucket: str, name: str, resource: dict[str, Any]) -> str:
        self.check(bucket, name, self.conditions)
        file_id = f"{super().create_resumable_upload(bucket, name, resource)}:{uuid.uuid4()}"
        self.resumable[file_id] = resource
        self._promised[file_id] = self.conditions
        return file_id

    def get_file_obj(self, bucket: str, name: str) -> dict[str, Any]:
        resource: dict[str, Any] = super().get_file_obj(bucket, name)
        self.check(bucket, name, self.conditions)
        return resource

    def get_file(self, bucket: str, name: str, show_error: bool = True) -> bytes:
        if bucket == storage.RESUMABLE_DIR:
            content: bytes = super().get_file(bucket, name, show_error)
            return content
        return self.blob(self.get_file_obj(bucket, name)).read_bytes()

    def delete_file(self, bucket: str, name: str) -> None:
        resource = self.get_file_obj(bucket, name)
        del self.objects[bucket][name]
        self._record("delete", bucket, name, None)
        self.blob(resource).unlink()


class Response(server.Response):
    """The emulator's, with Google's words where it has none."""

    def close(self) -> None:
        path = unquote(urlsplit(self._handler.path).path)
        if self.status >= 400 and not self._content and JSON_API.match(path):
            bucket, _, name = re.sub(r"^.*?/b/", "", path).partition("/o/")
            known = bucket.removesuffix("/o") in self._handler.storage.buckets
            message = f"No such object: {bucket}/{name}" if known else "The specified bucket does not exist."
            self.json(_json_error(self.status, message, "notFound"))
        if self._handler.command == "DELETE" and self.status == 200 and self._handler.xml == "full":
            self.status = HTTPStatus.NO_CONTENT
        super().close()


server.Response = Response  # which the emulator's router looks up when it is called


def _json_error(status: int, message: str, reason: str) -> dict[str, Any]:
    inner = {"message": message, "domain": "global", "reason": reason}
    return {"error": {"code": int(status), "message": message, "errors": [inner]}}


def _cut_upload(handler: server.RequestHandler, query: dict[str, list[str]]) -> object:
    """Stands for the emulator's `_read_data`: the same, but for multipart/related."""
    kind = handler.headers.get("Content-Type") or ""
    if not kind.startswith("multipart/related"):
        return _emulators_read_data(handler, query)
    mark = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()  # type: ignore[index]
    body = handler.rfile.read()
    second = body.index(mark, len(mark))
    start = body.index(b"\r\n\r\n", second) + 4
    return {
        "meta": json.loads(body[:second].partition(b"\r\n\r\n")[2]),
        "content": body[start : body.rindex(b"\r\n" + mark)],
        "content-type": re.search(rb"(?i)content-type: *([^\r;]+)", body[second:start])[1].decode(),  # type: ignore[index]
    }


_emulators_read_data = server._read_data
server._read_data = _cut_upload


class Handler(server.RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    storage: Storage
    xml = "full"

    def __init__(self, *args: Any) -> None:
        super().__init__(self.storage, *args)

    def do(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if self.xml in ("emulators", "none"):
            if self.xml == "none" and not JSON_API.match(url.path):
                self._body()
                self._send(404, b"", {})
            else:
                self._emulate()
            return
        listed = re.fullmatch(r"/storage/v1/b/([^/]+)/o", url.path)
        media = re.fullmatch(r"/download/storage/v1/b/([^/]+)/o/(.+)", url.path)
        if listed and self.command == "GET":
            self._list(listed[1])
        elif media and self.command == "GET":
            self._read(*map(unquote, media.groups()))
        elif JSON_API.match(url.path):
            self._emulate()
        else:
            self._xml(*unquote(url.path)[1:].partition("/")[::2])

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do  # noqa: N815

    def _body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionResetError  # half a request asks nothing
        return body

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, status: int, content: object) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    # --- the emulator's own, under the lock

    def _emulate(self) -> None:
        outer, body, answer = (self.rfile, self.wfile), self._body(), io.BytesIO()
        with LOCK:
            self.rfile, self.wfile = io.BytesIO(body), answer
            self.storage.conditions = {name: self.query[name] for name in CONDITIONS if name in self.query}
            try:
                server.Router(self).handle(self.command)
                failed = False
            except ConditionNotMet:
                failed = True
            finally:
                self.storage.conditions = {}
                self.rfile, self.wfile = outer
        if failed:
            self._send_json(412, _json_error(412, NOT_HELD, "conditionNotMet"))
        else:
            self.wfile.write(answer.getvalue())

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix") or None, self.query.get("delimiter") or None
        try:
            with LOCK:
                resources, prefixes = self.storage.get_file_list(bucket, prefix, delimiter)
        except NotFound:
            self._send_json(404, _json_error(404, "The specified bucket does not exist.", "notFound"))
            return
        found = sorted([(item["name"], item) for item in resources] + [(name, None) for name in prefixes])
        found = [pair for pair in found if pair[0] > self.query.get("pageToken", "")]
        page = found[: min(PAGE, int(self.query.get("maxResults", PAGE)))]
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [item for _, item in page if item],
            "prefixes": [name for name, item in page if not item],
        }
        if len(page) < len(found):
            answer["nextPageToken"] = page[-1][0]
        self._send_json(200, answer)

    # --- the XML API: cloud.google.com/storage/docs/xml-api

    def _xml(self, bucket: str, name: str) -> None:
        body = self._body()
        if bucket not in self.storage.buckets:
            self._refuse(404, "NoSuchBucket", "The specified bucket does not exist.")
        elif self.command == "GET":
            self._read(bucket, name)
        elif "uploads" in self.query:
            upload = uuid.uuid4().hex
            (self.storage.uploads / upload).mkdir()
            (self.storage.uploads / upload / "of").write_text(json.dumps([bucket, name]))
            self._send_xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        else:
            self._upload(bucket, name, body)

    def _send_xml(self, tag: str, inner: str) -> None:
        named = "" if self.xml == "loose" else f" xmlns='{XMLNS}'"
        text = f"<?xml version='1.0' encoding='UTF-8'?><{tag}{named}>{inner}</{tag}>"
        self._send(200, text.encode(), {"Content-Type": "application/xml; charset=UTF-8"})

    def _refuse(self, status: int, code: str, message: str, details: str = "") -> None:
        inner = f"<Code>{code}</Code><Message>{escape(message)}</Message><Details>{escape(details)}</Details>"
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error>{inner}</Error>"
        self._send(status, text.encode(), {"Content-Type": "application/xml; charset=UTF-8"})

    def _read(self, bucket: str, name: str) -> None:
        with LOCK:
            resource = self.storage.objects.get(bucket, {}).get(name)
            if resource and self.query.get("generation", resource["generation"]) != resource["generation"]:
                resource = None  # an old one, which is not kept
            wanted = self.headers.get("x-goog-if-generation-match") or self.query.get("ifGenerationMatch")
            met = wanted in (None, (resource or {}).get("generation", "0"))
            blob = open(self.storage.blob(resource), "rb") if resource and met else None  # noqa: SIM115, outlives a replacement
        if not met:
            self._refuse(412, "PreconditionFailed", NOT_HELD)
        elif blob is None:
            self._refuse(404, "NoSuchKey", "The specified key does not exist.", f"No such object: {bucket}/{name}")
        else:
            with blob:
                if resource.get("contentEncoding") == "gzip" and "gzip" not in self.headers.get("Accept-Encoding", ""):
                    self._send(200, gzip.decompress(blob.read()), {"x-goog-stored-content-encoding": "gzip"})
                else:
                    self._send_blob(blob, resource)

    def _send_blob(self, blob: io.BufferedReader, resource: dict[str, Any]) -> None:
        size = int(resource["size"])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert asked is not None
        start, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
        ranged = "Range" in self.headers
        if ranged and start >= size:
            self._refuse(416, "InvalidRange", "The requested range cannot be satisfied.")
            return
        created = time.strptime(resource["timeCreated"][:19], "%Y-%m-%dT%H:%M:%S")
        hashes = {"crc32c": resource["crc32c"], "md5": resource["md5Hash"]}  # an object of parts has no MD5
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Type", resource["contentType"])
        if encoding := resource.get("contentEncoding"):
            self.send_header("Content-Encoding", encoding)
        self.send_header("Last-Modified", formatdate(calendar.timegm(created), usegmt=True))
        self.send_header("x-goog-generation", resource["generation"])
        self.send_header("x-goog-stored-content-length", str(size))
        self.send_header("x-goog-hash", ",".join(f"{kind}={value}" for kind, value in hashes.items() if value))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        self.connection.settimeout(600)
        self.connection.sendfile(blob, start, end - start)

    def _upload(self, bucket: str, name: str, body: bytes) -> None:
        upload = self.storage.uploads / self.query.get("uploadId", "").replace("/", "")
        of = upload / "of"
        if not self.query.get("uploadId") or not of.exists() or json.loads(of.read_text()) != [bucket, name]:
            self._refuse(404, "NoSuchUpload", "The requested upload was not found.")
        elif self.command == "DELETE":
            gone = upload.rename(upload.with_name(f".{upload.name}"))  # a part may still be coming in
            shutil.rmtree(gone, ignore_errors=True)
            self._send(204, b"", {})
        elif self.command == "PUT":
            self._put_part(upload / self.query["partNumber"], body)
        else:
            self._complete(upload, bucket, name, body)

    def _put_part(self, path: Path, body: bytes) -> None:
        if self.xml == "loose" and "Date" not in self.headers:
            self._refuse(400, "400", "failed to parse date")
            return
        crc = _base64_crc(google_crc32c.value(body))
        told = self.headers.get("x-goog-hash")
        if told not in (None, f"crc32c={crc}"):
            details = f"The CRC32C you specified ({told}) did not match what we computed ({crc})."
            self._refuse(400, "BadDigest", "The CRC32C you specified did not match what we received.", details)
            return
        with open(path.with_suffix(f".{uuid.uuid4().hex}"), "xb") as scratch:
            scratch.write(body)
        os.replace(scratch.name, path)
        self._send(200, b"", {"ETag": f'"{crc}"', "x-goog-hash": f"crc32c={crc}"})

    def _complete(self, upload: Path, bucket: str, name: str, body: bytes) -> None:
        parts = [(part[0].text, part[1].text) for part in ElementTree.fromstring(body)]
        paths = [upload / str(number) for number, _ in parts]
        if not all(path.exists() for path in paths):
            self._refuse(400, "InvalidPart", "One or more of the specified parts could not be found.")
            return
        if any(path.stat().st_size < LEAST_PART for path in paths[:-1]):
            self._refuse(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum object size.")
            return
        crc, size, whole = 0, 0, upload / "whole"
        with open(whole, "wb") as joined:
            for path, (_, etag) in zip(paths, parts, strict=True):
                own = 0
                for piece in _pieces(path):
                    crc, own, size = (
                        google_crc32c.extend(crc, piece),
                        google_crc32c.extend(own, piece),
                        size + len(piece),
                    )
                    joined.write(piece)
                if f'"{_base64_crc(own)}"' != etag:
                    self._refuse(400, "InvalidPart", "The part's entity tag does not match the specified entity tag.")
                    return
        with LOCK:
            resource = make_resource(
                f"http://{self.headers['Host']}", bucket, name, "application/octet-stream", str(size)
            )
            resource |= {"crc32c": _base64_crc(crc), "etag": uuid.uuid4().hex, "componentCount": len(parts)}
            os.replace(whole, self.storage.blob(resource))
            self.storage.adopt(bucket, name, resource)
        shutil.rmtree(upload, ignore_errors=True)
        self._send_xml("CompleteMultipartUploadResult", f"<Bucket>{bucket}</Bucket><Key>{escape(name)}</Key>")


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _base64_crc(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--xml", choices=("full", "loose", "emulators", "none"), default="full")
    args = parser.parse_args()
    Handler.xml = args.xml
    Handler.storage = Storage(args.data.absolute())
    Server((args.host, args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
