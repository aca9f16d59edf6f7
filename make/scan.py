"""`make scan`: look for secrets in every file of every layer of an image, and in what the image says of itself.

    python make/scan.py IMAGE [DOCKER]

A layer keeps what a later one deletes or overwrites, so each is looked at by itself. What counts as a secret is told by
detect-secrets' plugins for the keys and tokens that people have beside this image, and by patterns here for those that
it has no plugin for. Its guesses by entropy and by names such as `password` are left out: most of an image is other
people's code, and in that they are wrong. A value is never printed. Exit code 0, or 78 where something was found.

Not looked into: archives and compressed files inside a layer, and secrets that were encoded (base64 and the like).
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.slack import SlackDetector

PIECE = 8 << 20  # bytes read at once
BEFORE, AFTER = 200, 4096  # bytes of a line that a plugin is shown around what gave it away


class GoogleDetector(RegexBasedDetector):
    secret_type = "Google token, key or client secret"
    denylist = (re.compile(r"\bya29\.[\w-]{30,}|\bAIza[\w-]{35}\b|\bGOCSPX-[\w-]{28}\b"),)


class HuggingFaceDetector(RegexBasedDetector):
    secret_type = "Hugging Face token"
    denylist = (re.compile(r"\bhf_[A-Za-z0-9]{34}\b"),)


class AzureSignatureDetector(RegexBasedDetector):
    secret_type = "Azure shared access signature"
    denylist = (re.compile(r"\bsig=[A-Za-z0-9%/+]{40,60}(?:%3D|=)", re.IGNORECASE),)


class AWSSecretDetector(RegexBasedDetector):
    """As it stands in a credentials file or the environment, without the quotes that the plugin wants."""

    secret_type = "AWS secret access key"
    denylist = (
        re.compile(r"\w*secret_?access_?key[\"']?\s*[=:]\s*[\"']?[0-9A-Za-z/+]{40}(?![0-9A-Za-z/+])", re.IGNORECASE),
    )


class PrivateKeyDetector(RegexBasedDetector):
    """With some of the key after its first line: libraries that read and write keys hold that line as well."""

    secret_type = "private key"
    denylist = (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:\\n|\\r|\s|[A-Za-z-]+: [^\n]*)*[A-Za-z0-9+/=]{60}"
        ),
    )


class PasswordInAddressDetector(RegexBasedDetector):
    """As of a package index or a proxy. Documentation is full of made-up ones, so packages' own files don't count."""

    secret_type = "password in an address"
    denylist = (re.compile(r"https?://[^\s/:@\"']{1,100}:[^\s/:@\"']{3,200}@[\w.-]+"),)


# what gives each away, in bytes that can be looked for fast -> what then has the last word
LOOKED_FOR: tuple[tuple[RegexBasedDetector, tuple[bytes, ...]], ...] = (
    (AWSKeyDetector(), (b"AKIA", b"ASIA")),
    (AWSSecretDetector(), (b"ecret_access_key", b"ecretAccessKey", b"SECRET_ACCESS_KEY")),
    (PrivateKeyDetector(), (b"PRIVATE KEY",)),
    (AzureStorageKeyDetector(), (b"AccountKey=",)),
    (AzureSignatureDetector(), (b"sig=",)),
    (GoogleDetector(), (b"ya29.", b"AIza", b"GOCSPX-")),
    (GitHubTokenDetector(), (b"ghp_", b"gho_", b"ghs_", b"github_pat_")),
    (GitLabTokenDetector(), (b"glpat-",)),
    (HuggingFaceDetector(), (b"hf_",)),
    (JwtTokenDetector(), (b"eyJ",)),
    (NpmDetector(), (b"_authToken",)),
    (OpenAIDetector(), (b"T3BlbkFJ",)),
    (PypiTokenDetector(), (b"pypi-AgE",)),
    (SlackDetector(), (b"xoxb-", b"xoxp-", b"hooks.slack.com")),
    (PasswordInAddressDetector(), (b"://",)),
)
# Published on purpose, by the SHA-256 of what the detector gives: naming them here would set off other scanners.
PUBLIC = {
    "5de261506c0ff857b7c1af7059f842fb0a36d1ca2e4895da542c5eb726f2c802": "transformers' own test user at Hugging Face",
    "498d929b7f545ac77f67b3173e772ef7ce53f0c0caabee4779bb1f90ec1344da": "the token in PyJWT's description",
}
# Where a detector finds only what its makers published: documentation's made-up passwords, though a package's own
# direct_url.json tells where it was really fetched; and the keys with which GnuTLS tests itself at each start.
NOT_THERE: dict[str, re.Pattern[str]] = {
    PasswordInAddressDetector.secret_type: re.compile(
        r"/(?:site|dist)-packages/(?!.*/direct_url\.json$)|^/usr/(?:share|lib)/"
    ),
    PrivateKeyDetector.secret_type: re.compile(r"^/usr/lib/[^/]+/libgnutls\.so"),
}


@dataclass(frozen=True)
class File:
    """One in a layer, also where a later one hides it; in the layer "image": what the image says of itself."""

    layer: str
    path: str
    size: int  # bytes
    secrets: frozenset[str]  # their kinds


def secrets_in(file: IO[bytes], path: str) -> frozenset[str]:
    """Kinds of the secrets in one file."""
    detectors = [
        (detector, literals)
        for detector, literals in LOOKED_FOR
        if not (detector.secret_type in NOT_THERE and NOT_THERE[detector.secret_type].search(path))
    ]
    kinds: set[str] = set()
    before = b""
    while piece := file.read(PIECE):
        text = before + piece
        for detector, literals in detectors:
            if any(_confirmed(detector, text, literal) for literal in literals):
                kinds.add(detector.secret_type)
        before = text[-(BEFORE + AFTER) :]
    return frozenset(kinds)


def _confirmed(detector: RegexBasedDetector, text: bytes, literal: bytes) -> bool:
    at = text.find(literal)
    while at >= 0:
        shown = text[max(0, at - BEFORE) : at + AFTER]
        if isinstance(detector, PrivateKeyDetector):
            end = at + AFTER  # the one that has more than one line
        else:
            start = text.rfind(b"\n", max(0, at - BEFORE), at) + 1 or max(0, at - BEFORE)
            end = text.find(b"\n", at, at + AFTER)
            end = end if end >= 0 else at + AFTER
            shown = text[start:end]
        if _holds(detector, shown.decode("latin-1")):
            return True
        at = text.find(literal, end)
    return False


def _holds(detector: RegexBasedDetector, text: str) -> bool:
    """Whether the text has a secret: none that is known to all or says that it is an example, and no part of a word."""
    for pattern in detector.denylist:
        for match in pattern.finditer(text):
            secret, before, after = match[0], text[: match.start()][-1:], text[match.end() :][:1]
            in_word = secret[0].isalnum() and (before.isalnum() or before in ("_", "+", "/"))
            if isinstance(detector, AWSKeyDetector):  # of one length, so what is longer is something else
                in_word = in_word or after.isalnum()
            known = "EXAMPLE" in secret or hashlib.sha256(secret.encode()).hexdigest() in PUBLIC
            if not in_word and not known and any(detector.analyze_string(secret)):
                return True
    return False


def scan(image: IO[bytes]) -> Iterator[File]:
    """Every file in what `docker save` writes. Raises `tarfile.ReadError` where it wrote nothing."""
    with tarfile.open(fileobj=image, mode="r|") as outer:
        for member in outer:
            content = outer.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            name = member.name.removeprefix("blobs/sha256/").split("/")[0][:12]
            # layer.tar by Docker up to 24; from then on blobs/sha256/..., of which the small ones may be JSON
            if member.name.endswith("layer.tar") or (member.name.startswith("blobs/") and member.size > PIECE):
                yield from _scan_layer(content, name)
                continue
            whole = io.BytesIO(content.read())
            try:
                yield from list(_scan_layer(whole, name))
            except tarfile.ReadError:
                whole.seek(0)
                yield File("image", member.name, member.size, secrets_in(whole, member.name))


def _scan_layer(content: IO[bytes], name: str) -> Iterator[File]:
    with tarfile.open(fileobj=content, mode="r|*") as layer:
        for entry in layer:
            path = "/" + entry.name.removeprefix("./")
            file = layer.extractfile(entry) if entry.isreg() else None
            if file is not None:
                yield File(name, path, entry.size, secrets_in(file, path))
            elif not entry.isdir():
                yield File(name, path, 0, frozenset())


def main(image: str, docker: str = "docker") -> int:
    files, layers, found = 0, set(), 0
    with subprocess.Popen([docker, "save", image], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        try:
            for file in scan(saving.stdout):
                files += 1
                layers.add(file.layer)
                for kind in sorted(file.secrets):
                    found += 1
                    print(f"{kind}: {file.path} in layer {file.layer}")
        except tarfile.ReadError:
            saving.kill()
            print(f"{image} can't be read: is there such an image? (make image)", file=sys.stderr)
            return 78
        saving.stdout.read()  # what fills the last block up
    if saving.returncode:  # it may have ended between two files, which looks like an image's end
        print(f"{image} was not read to its end: {docker} save ended with {saving.returncode}", file=sys.stderr)
        return 78
    print(f"{image}: {files} files in {len(layers - {'image'})} layers, {found or 'no'} secrets")
    if found:
        print("whoever has the image has them: take them back where they were made, then keep them out of the build")
    return 78 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
