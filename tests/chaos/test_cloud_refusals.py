"""What a person must mend in a cloud is found before the first step: exit 78, one line that says how, no retry."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

from tests.chaos.test_every_store_call import in_a_child, train
from tests.clouds import Cloud, reached
from tests.emulators.azurite import ACCOUNT
from tests.emulators.proxy import Fault


@dataclass
class Refusal:
    """What the cloud answers, in its own words, and what the one line must say; `variables`: other credentials."""

    answer: Fault
    says: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    requests: int = 1  # how often the cloud is asked


def s3(status: int, code: str, message: str, more: str = "", **headers: str) -> Fault:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("answer", status=status, body=body.encode(), headers={"content-type": "application/xml", **named})


def google(status: int, reason: str, message: str, **headers: str) -> Fault:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    body = json.dumps({"error": {"code": status, "message": message, "errors": errors}}).encode()
    told = {"content-type": "application/json", **headers}
    return Fault("answer", status=status, body=body, headers=told, when=lambda request: request.target != "/token")


def token_service(status: int, **answer: object) -> Fault:
    body, told = json.dumps(answer).encode(), {"content-type": "application/json"}
    return Fault("answer", status=status, body=body, headers=told, when=lambda request: request.target == "/token")


TOKEN = token_service(200, access_token="hush", token_type="Bearer", expires_in=3600)


def azure(status: int, code: str, message: str, detail: str = "", **headers: str) -> Fault:
    more = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>" if detail else ""
    body = f"\ufeff<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    told = {"content-type": "application/xml", "x-ms-error-code": code, **headers}
    return Fault("answer", status=status, body=body.encode(), headers=told)


def of_s3(cloud: Cloud, folder: Path) -> dict[str, Refusal]:
    """Amazon's manual, "Error responses"."""
    arn = "arn:aws:sts::123456789012:assumed-role/baton/i-0abc"
    return {
        "no right": Refusal(
            s3(403, "AccessDenied", f"User: {arn} is not authorized to perform: s3:ListBucket on resource: x"),
            ("AccessDenied", arn, "the role needs s3:ListBucket"),
        ),
        "expired": Refusal(
            s3(400, "ExpiredToken", "The provided token has expired."), ("credentials are out of date",)
        ),
        "clock": Refusal(
            s3(
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and now is too large.",
            ),
            ("set this machine's clock",),
        ),
        "another region": Refusal(
            s3(
                301,
                "PermanentRedirect",
                "The bucket you are attempting to access must be addressed using the specified endpoint.",
                "<Bucket>baton-chaos</Bucket><Endpoint>baton-chaos.s3.eu-west-3.amazonaws.com</Endpoint>",
                x_amz_bucket_region="eu-west-3",
            ),
            ("set AWS_REGION=eu-west-3",),
            requests=2,  # by the SDK, which would follow the bucket to where it is
        ),
        "signed for another region": Refusal(
            s3(
                400,
                "AuthorizationHeaderMalformed",
                "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-3'",
                "<Region>eu-west-3</Region>",
            ),
            ("set AWS_REGION=eu-west-3",),
            requests=2,
        ),
        "wrong key": Refusal(
            s3(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature."),
            ("AWS_SECRET_ACCESS_KEY doesn't fit AWS_ACCESS_KEY_ID",),
        ),
    }


def of_google(cloud: Cloud, folder: Path) -> dict[str, Refusal]:
    """Google's manuals, "HTTP status and error codes for JSON" and "Using OAuth 2.0 for server to server applications".

    It knows no wrong region. A key's token is asked for before anything else.
    """
    key = {"GOOGLE_APPLICATION_CREDENTIALS": key_file(cloud, folder), "API_ENDPOINT_OVERRIDE": cloud.proxy.url}
    late = formatdate(time.time() + 3600, usegmt=True)
    often = 6  # a token that is refused may be just out of date: the SDK gets another one, twice
    return {
        "no right": Refusal(
            google(403, "forbidden", "baton@p.iam does not have storage.objects.list access to the bucket."),
            ("it takes storage.objects.list", "roles/storage.objectUser on gs://baton-chaos"),
            key,
            2,
        ),
        "expired": Refusal(
            google(401, "authError", "Invalid Credentials"),
            ("credentials are refused: Invalid Credentials", "attach a service account"),
            key,
            often,
        ),
        "clock": Refusal(
            google(401, "authError", "Invalid Credentials", date=late),
            ("this machine's clock is", "s behind: set it"),
            key,
            often,
        ),
        "wrong key": Refusal(
            token_service(400, error="invalid_grant", error_description="Invalid JWT Signature."),
            ("invalid_grant: Invalid JWT Signature.", "GOOGLE_APPLICATION_CREDENTIALS"),
            key,
        ),
        "clock, found by the token service": Refusal(
            token_service(
                400,
                error="invalid_grant",
                error_description="Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable "
                "timeframe. Check your iat and exp values in the JWT claim.",
            ),
            ("invalid_grant", "set this machine's clock"),
            key,
        ),
    }


def key_file(cloud: Cloud, folder: Path) -> str:
    """A service account's key, whose tokens are the proxy's to give."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(65537, 2048)
    told = {
        "type": "service_account",
        "client_email": "baton@p.iam.gserviceaccount.com",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "token_uri": f"{cloud.proxy.url}/token",
    }
    (folder / "key.json").write_text(json.dumps(told))
    return str(folder / "key.json")


def of_azure(cloud: Cloud, folder: Path) -> dict[str, Refusal]:
    """Azure's manual, "Common REST API error codes". It knows no wrong region: an account's name has its place."""
    failed = "Server failed to authenticate the request. Make sure the value of Authorization header is formed"
    ended = datetime.now(UTC) - timedelta(hours=1)
    return {
        "no right": Refusal(
            azure(403, "AuthorizationPermissionMismatch", "This request is not authorized using this permission."),
            ("it needs the role Storage Blob Data Contributor", "action blobs/read"),
        ),
        "expired": Refusal(
            azure(403, "AuthenticationFailed", failed, "Signature not valid in the specified time frame"),
            ("SAS token from AZURE_STORAGE_SAS_TOKEN", f"it expired at {ended:%Y-%m-%d %H:%M} UTC: make a new one"),
            {
                "AZURE_STORAGE_SERVICE_ENDPOINT": f"{cloud.proxy.url}/{ACCOUNT}",
                "AZURE_STORAGE_SAS_TOKEN": f"sv=2024-11-04&sp=racwdl&se={ended:%Y-%m-%dT%H:%M:%SZ}&sr=c&sig=hush",
            },
        ),
        "clock": Refusal(
            azure(
                403,
                "AuthenticationFailed",
                failed,
                "Request date header too old: 'Thu, 01 Jan 2015 00:00:00 GMT'",
                date=formatdate(time.time() + 3600, usegmt=True),
            ),
            ("this machine's clock is wrong: set it",),
        ),
        "wrong key": Refusal(
            azure(403, "AuthenticationFailed", failed, "The MAC signature found in the HTTP request is not the same"),
            (f"key of {ACCOUNT} from AZURE_STORAGE_CONNECTION_STRING", "renew or correct it (The MAC signature"),
        ),
    }


REFUSALS = {"s3": of_s3, "gs": of_google, "az": of_azure}


def test_what_a_cloud_refuses_ends_a_start_at_once_in_one_line_that_says_what_to_do(
    cloud: Cloud, tmp_path: Path, small_cifar: Path
) -> None:
    """Nothing of it passes by itself, so nothing is asked for again."""
    import trainer.run  # noqa: F401  (imported before forking, so that each child starts at once)

    for name, refusal in REFUSALS[cloud.name](cloud, tmp_path).items():
        cloud.proxy.faults = [refusal.answer, TOKEN]
        cloud.proxy.requests.clear()
        code, lines = started(cloud, refusal.variables or cloud.variables, tmp_path / name, small_cifar)
        assert code == 78, f"{name}: {lines}"
        (error,) = (line for line in lines if "error: " in line)
        assert error == lines[-1]
        for words in refusal.says:
            assert words in error, name
        assert not any("Traceback" in line or "trying again" in line or "hush" in line for line in lines)
        asked = [(request.method, request.target) for request in cloud.proxy.requests]
        assert len(asked) == refusal.requests, f"{name}: {asked}"
        if cloud.name == "gs":
            assert any("credentials: service account baton@p.iam.gserviceaccount.com by its key" in x for x in lines)


def started(cloud: Cloud, variables: Mapping[str, str], folder: Path, data: Path) -> tuple[int, list[str]]:
    """A start's exit code and lines."""
    with reached({"NO_GCE_CHECK": "true", **variables} if cloud.name == "gs" else dict(variables)):
        lab = cloud.lab(folder, data)
        code = in_a_child(lambda: train(lab, folder / "log"))
    return code, (folder / "log").read_text().splitlines()
