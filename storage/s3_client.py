"""The SDK's client for S3: whose credentials, how long a request may wait, at what pace an answer must come."""

from __future__ import annotations

import logging
import os
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore import exceptions as sdk  # type: ignore[import-untyped]
from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]

from storage.errors import NotSetUp
from storage.pace import Patience, pools
from storage.s3_errors import one_line

CONNECT_S = 5.0

log = logging.getLogger(__name__)


def connect(url: str, patience: Patience, connections: int) -> Any:
    """A client for the store at `url`. Raises what botocore raises where there are no credentials, and `NotSetUp`."""
    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise sdk.NoCredentialsError
    log.info("%s: credentials: %s", url, _kind(credentials.method, session.profile_name))
    config = Config(
        retries={"total_max_attempts": 1},  # retrying is a wrapper's, which knows the deadline
        connect_timeout=max(0.1, min(CONNECT_S, patience())),
        max_pool_connections=connections,
        response_checksum_validation="when_required",  # done by the store, over the whole object
        user_agent_extra="baton",
    )
    # containers on AWS are told their region by this variable, which boto3 overlooks
    region = session.region_name or os.environ.get("AWS_REGION")
    try:
        client = session.client("s3", region_name=region, config=config)
    except ValueError as e:  # "Invalid endpoint"
        raise NotSetUp(f"{url}: {one_line(e)}; look at AWS_ENDPOINT_URL_S3") from e

    def set_patience(context: dict[str, Any], **_: Any) -> None:
        context["read_timeout"] = max(0.1, patience())

    client.meta.events.register("before-call.s3", set_patience)
    # botocore has no public way to choose the classes of its connections; its managers all look into this one table
    http = client._endpoint.http_session
    http._pool_classes_by_scheme.update(pools(patience, AWSHTTPConnectionPool, AWSHTTPSConnectionPool))
    return client


def sends_checksums(client: Any) -> bool:
    """AWS_REQUEST_CHECKSUM_CALCULATION=when_required is how one keeps them from servers that refuse them."""
    return bool(client.meta.config.request_checksum_calculation != "when_required")


def _kind(method: str, profile: str) -> str:
    """Credentials by the kind and name of where they come from, never by value."""
    role = os.environ.get("AWS_ROLE_ARN", f"of profile {profile}")
    return {
        "env": "environment variable AWS_ACCESS_KEY_ID",
        "shared-credentials-file": f"credentials file, profile {profile}",
        "config-file": f"configuration file, profile {profile}",
        "assume-role": f"role assumed by profile {profile}",
        "assume-role-with-web-identity": f"role {role} by workload identity federation",
        "container-role": "role of the container (ECS task or EKS pod identity)",
        "iam-role": "role of the instance",
        "custom-process": f"program named by profile {profile}",
        "sso": f"single sign-on of profile {profile}",
    }.get(method, method)
