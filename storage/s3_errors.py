"""What S3 says when it doesn't do as it is told, in this house's words."""

from __future__ import annotations

import os
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as sdk  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from storage.errors import (
    AlreadyExists,
    Damaged,
    NoSpace,
    NotFound,
    NotSetUp,
    PermissionDenied,
    StoreError,
    Unavailable,
    Unsupported,
    one_line,
)
from storage.mistakes import mistake_here

# a person must act on these; each with what to do
_SET_UP = {
    "NoSuchBucket": "make it: aws s3 mb s3://{bucket}",
    "ExpiredToken": "the credentials are out of date; whatever issued them must issue new ones",
    "ExpiredTokenException": "the credentials are out of date; whatever issued them must issue new ones",
    "TokenRefreshRequired": "the credentials are out of date; whatever issued them must issue new ones",
    "InvalidToken": "AWS_SESSION_TOKEN is none of this key's; set all three variables anew, or none",
    "InvalidAccessKeyId": "this server doesn't know the access key; was it deleted, or is it another server's?",
    "InvalidClientTokenId": "this server doesn't know the access key; was it deleted, or is it another server's?",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY doesn't fit AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "set this machine's clock (chrony or systemd-timesyncd)",
    "RequestExpired": "set this machine's clock (chrony or systemd-timesyncd)",
    "PermanentRedirect": "set AWS_REGION={region}",
    "AuthorizationHeaderMalformed": "set AWS_REGION={region}",
    "IllegalLocationConstraintException": "set AWS_REGION={region}",
    "InvalidBucketName": "no server can have a bucket of this name",
    "NotSignedUp": "sign the account up for S3",
    "InvalidObjectState": "it is archived: restore it, and let no lifecycle rule archive what is here",
}
_DAMAGED = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest"}
_FULL = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded"}  # Ceph's, with 403, and MinIO's, with 400
_BUSY = {"RequestTimeout", "IncompleteBody", "NoSuchUpload", "OperationAborted", "ConditionalRequestConflict"}
_NO_TOKEN_NOW = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "IDPCommunicationError")
_RIGHTS = {
    # without ListBucket S3 calls what is absent forbidden, and forbidden is never taken for absent
    "GetObject": "s3:GetObject on its objects and s3:ListBucket on the bucket",
    "HeadObject": "s3:GetObject on its objects and s3:ListBucket on the bucket",
    "ListObjectsV2": "s3:ListBucket on the bucket",
    "DeleteObject": "s3:DeleteObject on its objects",
}


def meaning(error: Exception, url: str, bucket: str, key: str, *, known: bool) -> StoreError:
    """What the SDK raised, in the store's own errors. `known`: the store has answered before, so its name is right."""
    if isinstance(error, sdk.ClientError):
        return _answered(error, url, bucket, key)
    if isinstance(error, sdk.HTTPClientError | sdk.ConnectionError | ResponseParserError | HTTPError):
        # of what has answered before, it is a proxy's hiccup; a page in S3's stead says anything
        if not known and not isinstance(error, ResponseParserError) and (mistake := mistake_here(error)):
            return NotSetUp(f"{url}: {mistake}")
        if not known and (host := _unknown_host(error)):
            named = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
            is_amazons = not named and re.search(r"\.amazonaws\.com(\.cn)?$", host)
            where = "AWS_REGION" if is_amazons else "AWS_ENDPOINT_URL_S3"
            return NotSetUp(f"{url}: {host}: no such name: is {where} right, and is there a network?")
        return Unavailable(f"{url}: {key or 'list'}: {one_line(error)}{_is_it_running(error)}")
    if isinstance(error, sdk.ProfileNotFound):
        file = _no_file()
        return NotSetUp(
            f"{url}: {one_line(error)}: look at AWS_PROFILE, and at the credentials file{f'; {file}' if file else ''}"
        )
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError):
        if mend := _no_pair() or _no_file():
            return NotSetUp(f"{url}: no AWS credentials: {mend}")
        return NotSetUp(
            f"{url}: no AWS credentials ({one_line(error)}); at a desk: aws configure, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; else give the machine a role (instance profile), set AWS_ROLE_ARN and "
            "AWS_WEB_IDENTITY_TOKEN_FILE, or mount a credentials file and set AWS_SHARED_CREDENTIALS_FILE"
        )
    if isinstance(error, sdk.CredentialRetrievalError) and _is_away(error):
        return Unavailable(f"{url}: {one_line(error)}")
    return NotSetUp(f"{url}: {one_line(error)}")


def _no_file() -> str | None:
    """A path is shown only if it looks like one: else it may be what is in a file."""
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "")
    if not path or os.path.exists(os.path.expanduser(path)):
        return None
    if path.startswith("/"):
        return f"AWS_SHARED_CREDENTIALS_FILE: {path} is no file here: mount it with -v FILE:{path}:ro"
    return "AWS_SHARED_CREDENTIALS_FILE is no file here: it wants a file's path, not its content"


def _no_pair() -> str | None:
    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = [name for name in pair if os.environ.get(name)]
    missing = [name for name in pair if name not in given]
    return f"{given[0]} is set and {missing[0]} is not: set both" if given and missing else None


def _is_it_running(error: Any) -> str:
    """A hint where a server of one's own takes no connection."""
    if isinstance(error, sdk.EndpointConnectionError):
        asked = urlsplit(error.kwargs["endpoint_url"]).netloc
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if (own := urlsplit(os.environ.get(name, "")).netloc) and asked.endswith(own):
                return f"; is it running? {name} says where"
    return ""


def _unknown_host(error: Any) -> str | None:
    """The host that was asked for, if there is none of that name. Where DNS is away (EAI_AGAIN), nobody knows."""
    if not isinstance(error, sdk.EndpointConnectionError):
        return None
    reason = getattr(error.kwargs["error"], "__cause__", None)
    unknown = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    return urlsplit(error.kwargs["endpoint_url"]).hostname if unknown else None


def _is_away(error: Any) -> bool:
    """Whether a machine's own service gives no credentials now; one that refuses them is a person's matter."""
    refused = re.search(r"non 200 response 4(?!08|29)", str(error))
    return error.kwargs["provider"] in ("iam-role", "container-role") and not refused


def _answered(error: Any, url: str, bucket: str, key: str) -> StoreError:
    """What an answer that is no success means."""
    code, operation = code_of(error), error.operation_name
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    message = error.response.get("Error", {}).get("Message")  # Ceph's errors have none
    said = f"{url}: {key or 'list'}: {code}{f': {one_line(message)}' if message else ''}"
    if operation.startswith("AssumeRole"):  # asked of the token service
        if status == 429 or status >= 500 or code in _NO_TOKEN_NOW:
            return Unavailable(f"{said} ({operation})")
        if code in _SET_UP:
            return NotSetUp(f"{said} ({operation}); {_SET_UP[code]}")
        return NotSetUp(f"{said} ({operation}); let the role's trust policy name this identity (sts:{operation})")
    # not a mere 404, which a proxy gives as well while the server behind it is away
    if code == "NoSuchKey" and operation in ("GetObject", "DeleteObject"):
        return NotFound(f"{url}: {key}: not there")
    if code == "PreconditionFailed":
        if operation == "PutObject":
            return AlreadyExists(f"{url}: {key}: already there")
        return Unavailable(f"{url}: {key}: was replaced while it was being read")
    if code in _SET_UP:
        return NotSetUp(f"{said}; {_SET_UP[code].format(bucket=bucket, region=_region(error))}")
    if status in (301, 307):
        return NotSetUp(f"{said}; set AWS_REGION={_region(error)}")
    if status == 507 or code in _FULL:
        return NoSpace(said)
    if status in (401, 403):
        rights = _RIGHTS.get(operation, "s3:PutObject and s3:AbortMultipartUpload on its objects")
        if "kms:" in (message or ""):
            rights = "kms:GenerateDataKey and kms:Decrypt on the bucket's key"
        return PermissionDenied(f"{said}; the role needs {rights}")
    if code in _DAMAGED:
        return Damaged(said)
    if status in (400, 501) and "checksum" in f"{code} {message}".lower():
        said += "; if this server knows no checksums, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
    if status == 501:
        return Unsupported(said)
    if code in _BUSY or status in (408, 429) or status >= 500:
        return Unavailable(said)
    if not code or code.isdecimal():  # the number alone: S3's own refusals have a word
        return Unavailable(f"{url}: {key or 'list'}: what answered with {status} is not S3, but something in between")
    return StoreError(said)


def code_of(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _region(error: Any) -> str:
    headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or error.response["Error"].get("Region") or "the bucket's")
