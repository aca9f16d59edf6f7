"""What Google says when it doesn't do as it is told, in this house's words."""

from __future__ import annotations

import re
import time
from xml.sax.saxutils import unescape

import requests
import urllib3
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError, TransportError

from storage.errors import (
    AlreadyExists,
    Damaged,
    NotSetUp,
    PermissionDenied,
    StoreError,
    Unavailable,
    one_line,
    unwrapped,
)
from storage.gcs_login import CREDENTIALS_MEND
from storage.headers import moment_of
from storage.mistakes import mistake_here

CLOCK_MEND = "set this machine's clock (chrony or systemd-timesyncd)"
LIST = "storage.objects.list"  # the right, by which a list is known
CLOCK_S = 240.0  # a token made by a clock that is 5 minutes off is refused
# what a 403 may be about but a right on the bucket, by Google's words and reasons; each with what to do
_FORBIDDEN = {
    "scope": "start the machine with the access scope cloud-platform (--scopes=cloud-platform)",
    "retentionPolicyNotMet|retention policy": "records here are written anew and deleted: take a bucket without one",
    "Cloud KMS|cloudkms": "let Google's agent use the bucket's key: gcloud storage service-agent --authorize-cmek=KEY",
    "billing account": "give the bucket's project a billing account that is open",
    "accountDisabled|AccountProblem": "the account of the bucket's project is disabled: ask Google's support why",
}
# How Google itself tells of an absence and of an unmet condition, in XML and in JSON; a number alone is anybody's. From
# cloud.google.com/storage/docs/xml-api/reference-status and .../json_api/v1/status-codes.
_GOOGLES = {
    404: r"NoSuchKey|NoSuchBucket|NoSuchUpload|No such object|bucket does not exist|\(notFound\)",
    412: r"PreconditionFailed|conditionNotMet|pre-conditions you specified|onstraint",
}
SDK_ERRORS = (GoogleAPICallError, GoogleAuthError, requests.RequestException, urllib3.exceptions.HTTPError)


def meaning(
    error: Exception,
    url: str,
    bucket: str,
    key: str,
    permission: str,
    absent: type[StoreError],
    unmet: type[StoreError],
    *,
    emulated: bool,
    known: bool,
) -> StoreError:
    """One of `SDK_ERRORS` as the store's own; `absent` for 404, `unmet` for a condition that failed.

    `emulated`: others' emulators say less than Google does, so that their numbers alone count, and a list's 404 is a
    bucket's. `known`: it has answered before, so what this machine is set to is right.
    """
    where = f"{url}: {key}" if key else url
    if isinstance(error, GoogleAPICallError):
        return _refusal(error, where, bucket, permission, absent, unmet, emulated)
    if not known and (mistake := mistake_here(error)):
        return NotSetUp(f"{where}: {mistake}")
    if isinstance(error, TransportError) or not isinstance(error, GoogleAuthError):
        failure = _failure(error)
        hint = "; is it running? STORAGE_EMULATOR_HOST says where" * (emulated and "to establish" in failure)
        return Unavailable(f"{where}: {failure}{hint}")
    words = one_line(error.args[0] if error.args else error)
    if error.retryable or _is_metadatas_hiccup(error):
        return Unavailable(f"{where}: no token: {words}")
    mend = CLOCK_MEND if "iat and exp" in words else CREDENTIALS_MEND  # when a key's own token was made, and ends
    return NotSetUp(f"{where}: the credentials give no token: {words}; {mend}")


def _is_metadatas_hiccup(error: GoogleAuthError) -> bool:
    """Whether the metadata service was asked again and again in vain. A 404, for no account, has no further cause."""
    return isinstance(error.__cause__, TransportError) and isinstance(error.__cause__.__cause__, TransportError)


def _refusal(
    e: GoogleAPICallError,
    where: str,
    bucket: str,
    permission: str,
    absent: type[StoreError],
    unmet: type[StoreError],
    emulated: bool,
) -> StoreError:
    status, words = int(e.code or 0), _words(e.response)
    # an emulator may name no reason; a list has nothing but the bucket that could be absent
    listed_in_vain = emulated and permission == LIST and _is_googles(status, words, emulated)
    if status == 404 and ("bucket does not exist" in words or listed_in_vain):
        make = f"gcloud storage buckets create gs://{bucket} --location=REGION --uniform-bucket-level-access"
        make += "; an emulator's by the line in docs/stores.md" * emulated
        return NotSetUp(f"{where}: there is no bucket {bucket}; make it: {make}")
    if status in _GOOGLES and not _is_googles(status, words, emulated):
        return Unavailable(f"{where}: something between here and Google answered in its stead, with {status}")
    if status == 404:
        return absent(f"{where}: not there")
    if status == 412 and re.search("(?i)orgPolicyConstraint|violates constraint", words):
        return NotSetUp(f"{where}: a policy of the organisation forbids it: {words}")
    if status == 412 and unmet is AlreadyExists:
        return unmet(f"{where}: already there")
    if status == 412 and permission == "storage.objects.get":
        return unmet(f"{where}: was replaced while it was read")
    if status == 401:
        return NotSetUp(f"{where}: the credentials are refused: {words}; {_clock(e.response)}{CREDENTIALS_MEND}")
    if status in (408, 409, 412, 429) or status >= 500 or (status == 403 and "ateLimitExceeded" in words):
        return Unavailable(f"{where}: Google answers {status}: {words}")
    if status == 403:
        mends = (mend for about, mend in _FORBIDDEN.items() if re.search(f"(?i){about}", words))
        usual = f"it takes {permission}, which roles/storage.objectUser on gs://{bucket} has"
        return PermissionDenied(f"{where}: {words}; {next(mends, usual)}")
    if status == 400 and re.search("(?i)crc32c|digest|checksum", words):
        return Damaged(f"{where}: {words}")
    return StoreError(f"{where}: Google answers {status}: {words}")


def _is_googles(status: int, words: str, emulated: bool) -> bool:
    """Whether a 404 or 412 is Google's own, and not a login page's or a proxy's."""
    if re.search("(?i)<html|<!doctype", words):
        return False
    return emulated or re.search(_GOOGLES[status], words) is not None


def _words(answer: requests.Response | None) -> str:
    """What Google says in its JSON or XML."""
    if answer is None:
        return ""
    text = answer.text
    if found := re.findall(r"<(?:Code|Message|Details)>([^<]*)<", text):
        return one_line(unescape(": ".join(filter(None, found))))
    try:
        error = answer.json()["error"]
        return one_line(f"{error['message']} ({error['errors'][0]['reason']})")
    except (ValueError, KeyError, TypeError, IndexError):
        return one_line(text)


def _failure(e: Exception) -> str:
    """Which way a connection failed."""
    text = str(e)
    if "imed out" in text:
        return "no answer in time"
    return f"the connection failed: {one_line(unwrapped(text))}"


def _clock(answer: requests.Response | None) -> str:
    """A hint where this machine's clock differs from Google's by more than tokens bear."""
    theirs = moment_of(answer.headers.get("Date")) if answer is not None else None
    off = 0.0 if theirs is None else time.time() - theirs
    if abs(off) <= CLOCK_S:
        return ""
    return f"this machine's clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}: set it; "
