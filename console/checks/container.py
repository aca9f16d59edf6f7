"""The container: can it be stopped from outside, may it write where it must, has it room."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from console.checks.examination import Check, Patient, Trouble, Warn
from console.checks.speed import GRACE_S
from trainer import limits

SHELLS = ("sh", "bash", "dash", "ash", "zsh")
PEAK = 922  # MB, of the smallest preset (README.md, "Measured")
MEMORY_FAIL, MEMORY_WARN = 1000, 2000  # MB
FREE_FAIL, FREE_WARN = 50, 500  # MB, for caches and what is packed on the way


def halt_folder(patient: Patient) -> str:
    folder = Path(patient.halt).absolute()  # docker mounts nothing on a relative path
    mount = f"docker run -v FOLDER:{folder} with a folder of the host's"
    if not patient.in_container:
        mount = f"mkdir {folder}, or name another: --halt FOLDER"
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError as e:
        raise Warn(f"{folder} isn't there: no halt file can stop it; SIGTERM and `halt --run` still can", mount) from e
    except OSError as e:
        raise Trouble(
            f"{folder} can't be looked at: {e.strerror}", f"chmod a+rx the folder that is mounted there; {mount}"
        ) from e
    if not stat.S_ISDIR(mode):
        raise Trouble(f"{folder} is a file, in whose place a new one is never seen", f"rm it on the host, and {mount}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise Trouble(f"{folder} can't be read by user {os.geteuid()}", "on the host: chmod a+rx that folder")
    for name in ("halt", "preempt.txt"):
        if (folder / name).exists():
            raise Warn(f"{folder / name} is there: training ends before it has begun", f"rm {folder / name}")
    outside = _host_path(patient, folder)
    if outside is None and patient.in_container:
        raise Warn(f"{folder} is the container's own: nobody outside can make a file in it", mount)
    return f"{folder}, outside: {outside}" if outside else f"{folder} can be read"


def _host_path(patient: Patient, folder: Path) -> str | None:
    """The folder on its own file system, which is the host's path as far as that has one; proc(5), mountinfo."""
    for line in patient.text("proc/self/mountinfo").splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[4] == str(folder):
            return fields[3].replace("\\040", " ")
    return None


def process_1(patient: Patient) -> str:
    name = patient.text("proc/1/comm")
    if not patient.in_container:
        return "not in a container"
    if name in SHELLS:
        raise Warn(
            f"process 1 is {name}, which passes no SIGTERM on: docker stop would kill without a last save",
            "leave the image's ENTRYPOINT as it is, or put `exec` before the command in your shell",
        )
    return f"{name or 'unknown'} passes signals on" if name in ("tini", "docker-init") else f"it is {name or 'unknown'}"


def stop_grace(patient: Patient) -> str:
    text = patient.environment.get("BATON_STOP_GRACE", f"{GRACE_S:.0f}")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 86400:
        raise Trouble(f"BATON_STOP_GRACE={text} is no number of seconds", "for example -e BATON_STOP_GRACE=10")
    return f"{seconds:g} s from SIGTERM to the kill; docker's --stop-timeout must be as long"


def writable(patient: Patient) -> str:
    """Where libraries keep their caches, and every library's own idea of a temporary folder."""
    root = "read-only" if os.statvfs(patient.root).f_flag & os.ST_RDONLY else "writable"
    for folder in (_cache(patient), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as e:
            raise Trouble(
                f"{folder} can't be written to: {e.strerror}",
                "docker run --tmpfs /tmp, or -e XDG_CACHE_HOME=FOLDER -e HOME=FOLDER with a folder of this user's",
            ) from e
    return f"root {root}, {_cache(patient)} can be written to"


def _cache(patient: Patient) -> Path:
    environment = patient.environment
    return Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or tempfile.gettempdir()) / ".cache")


def memory(patient: Patient) -> str:
    limit = limits.memory(patient.text)
    if limit >= limits.UNLIMITED:
        return "no limit of the container's own"
    megabytes = limit / 1e6
    if megabytes < MEMORY_WARN:
        raise Trouble(
            f"the container may have {megabytes:.0f} MB; the smallest preset has {PEAK} at its peak",
            "docker run --memory 4g, or no --memory at all",
            "failed" if megabytes < MEMORY_FAIL else "warning",
        )
    return f"{megabytes / 1000:.1f} GB at most"


def free(patient: Patient) -> str:
    folder = _cache(patient)
    while not folder.exists():
        folder = folder.parent
    megabytes = shutil.disk_usage(folder).free / 1e6
    if megabytes < FREE_WARN:
        raise Trouble(
            f"{megabytes:.0f} MB free at {folder}",
            "make room there, or --tmpfs /tmp:size=2g",
            "failed" if megabytes < FREE_FAIL else "warning",
        )
    return f"{megabytes / 1000:.1f} GB free at {folder}"


CHECKS = (
    Check("container", "halt folder", halt_folder),
    Check("container", "process 1", process_1),
    Check("container", "stop grace", stop_grace),
    Check("container", "writable", writable),
    Check("container", "memory", memory),
    Check("container", "free space", free),
)
