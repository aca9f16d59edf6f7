"""S3 on this machine: moto's server, in a process of its own.

Added to moto, where it does less than S3 and a test would show nothing:
- each reading, writing and deleting of an object is one step; moto itself lets two writers pass the look for
  `If-None-Match`, and answers 500 to who reads an object that another replaces at that moment;
- a body that doesn't fit its `x-amz-checksum-crc32` is refused with BadDigest; moto takes it.
Not there: rights and credentials (all are taken, but where `rights` are asked for), regions, `If-Match` on the
completion of a multipart upload, and anything on a disk: what is stored ends with the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class MotoS3:
    """`start` it, or use it in a with; its data is gone after `stop` or `kill`, its buckets are made anew."""

    def __init__(self, port: int = 0, *, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = port or _free_port(host)
        self.log = Path(tempfile.mkstemp(prefix="moto-", suffix=".log")[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets: list[str] = []

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{self.host}:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            # -P: this file's folder is not searched, where `moto` would be this file
            command = [sys.executable, "-P", __file__, self.host, str(self.port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "moto doesn't start"
            time.sleep(0.05)
        for bucket in self._buckets:
            self.client().create_bucket(Bucket=bucket)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> MotoS3:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def make_bucket(self, name: str) -> None:
        if name not in self._buckets:
            self.client().create_bucket(Bucket=name)
            self._buckets.append(name)

    @contextlib.contextmanager
    def rights(self, policy: object) -> Iterator[dict[str, str]]:
        """Meanwhile everybody's rights count; yields the variables by which one has just those of `policy`."""
        iam, name = self.client("iam"), uuid.uuid4().hex
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self._let_pass("0")
        try:
            yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        finally:
            self._let_pass("inf")

    def _let_pass(self, requests: str) -> None:
        """So many requests from now on by whoever asks, and later ones by who may."""
        address = f"http://{self.host}:{self.port}/moto-api/reset-auth"
        plain = urllib.request.Request(address, requests.encode(), {"Content-Type": "text/plain"})
        urllib.request.urlopen(plain, timeout=60).close()

    def client(self, service: str = "s3") -> Any:
        """The SDK's, past any proxy."""
        from boto3 import client

        env = self.env
        return client(
            service,
            endpoint_url=env["AWS_ENDPOINT_URL_S3"],
            region_name=env["AWS_REGION"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    def open_uploads(self, url: str) -> list[str]:
        """Keys below `url` with a multipart upload that was begun and neither completed nor aborted."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        told = self.client().list_multipart_uploads(Bucket=bucket, Prefix=f"{prefix}/")
        return [upload["Key"] for upload in told.get("Uploads", [])]

    def url(self, bucket: str, prefix: str = "") -> str:
        return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"


@pytest.fixture(scope="session")
def moto_emulator() -> Iterator[MotoS3]:
    with MotoS3() as emulator:
        yield emulator


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def _serve(host: str, port: int) -> None:
    import base64
    import threading
    import zlib

    from moto.s3.exceptions import S3ClientError
    from moto.s3.responses import S3Response
    from moto.server import main

    class BadDigest(S3ClientError):
        code = 400

        def __init__(self) -> None:
            super().__init__("BadDigest", "The CRC32 you specified did not match the calculated checksum.")

    one_at_a_time = threading.Lock()

    def checked(method):  # type: ignore[no-untyped-def]
        def checking(self):  # type: ignore[no-untyped-def]
            told = self.headers.get("x-amz-checksum-crc32")
            if told and told != base64.b64encode(zlib.crc32(self.body or b"").to_bytes(4, "big")).decode():
                raise BadDigest
            return method(self)

        return checking

    def alone(method):  # type: ignore[no-untyped-def]
        def waiting(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            with one_at_a_time:
                return method(self, *args, **kwargs)

        return waiting

    for name in ("put_object", "upload_part"):
        setattr(S3Response, name, checked(alone(getattr(S3Response, name))))
    for name in ("get_object", "head_object", "delete_object", "list_objects_v2", "_key_response_post"):
        setattr(S3Response, name, alone(getattr(S3Response, name)))
    main(["-H", host, "-p", str(port)])


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
