"""Ceph's object gateway on this machine, as Debian packages it: S3 by other people's code, which others really run.

A cluster of one monitor and one disk, the disk in memory, and the gateway before it, without authentication among them.
Wants the packages ceph-mon, ceph-osd, ceph-common and radosgw.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
KEY, SECRET = "AKIDCEPH", "secret"  # the gateway takes longer ones too
SETTINGS = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
osd class load list = *
osd class default list = *
osd class dir = {classes}
osd objectstore = memstore
memstore device bytes = 4294967296
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
admin socket = {folder}/$name.asok
pid file =
log file = {folder}/$name.log
run dir = {folder}
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [program for program in PROGRAMS if not shutil.which(program)]


class Ceph:
    """Use it in a with; all that it holds is gone with it."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="ceph-"))
        self._running = ExitStack()

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def __enter__(self) -> Ceph:
        with ExitStack() as failed:
            failed.callback(self.__exit__)
            self._start()
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def client(self) -> Any:
        from boto3 import client

        env = self.env
        return client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL_S3"],
            region_name=env["AWS_REGION"],
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def _start(self) -> None:
        cluster, disk, mon_port = str(uuid.uuid4()), str(uuid.uuid4()), _free_port()
        classes = next(Path("/usr/lib").glob("**/rados-classes"))
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        settings = SETTINGS.format(
            fsid=cluster, mon_port=mon_port, port=self.port, folder=self._folder, classes=classes
        )
        (self._folder / "ceph.conf").write_text(settings)
        self._do("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "--fsid", cluster, "monmap")
        self._do("ceph-authtool", "--create-keyring", "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._do("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._run("ceph-mon", "-i", "a")
        self._do("ceph", "osd", "new", disk)
        self._do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._do("ceph", "osd", "crush", "add", "osd.0", "1", "host=h", "root=default")
        self._run("ceph-osd", "-i", "0")
        gateway = self._run("radosgw", "-n", "client.rgw")
        end = time.monotonic() + 120
        while not self._answers():
            assert gateway.poll() is None, (self._folder / "said").read_text()
            assert time.monotonic() < end, "the gateway doesn't start"
            time.sleep(0.1)
        keys = ("--access-key", KEY, "--secret-key", SECRET)
        self._do("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=u", "--display-name=u", *keys)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _do(self, *command: str) -> None:
        said = subprocess.run(
            [*command, "-c", "ceph.conf"], cwd=self._folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert said.returncode == 0, f"{command}: {said.stdout}{said.stderr}"

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / "said").open("ab") as said:
            process = subprocess.Popen(
                [*command, "-f", "-c", "ceph.conf"], cwd=self._folder, stdout=said, stderr=subprocess.STDOUT
            )
        self._running.callback(process.wait)
        self._running.callback(process.kill)
        return process


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port
