"""Who asks, on S3: the SDK's own chain of credentials, whose sources fail in this house's words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore import exceptions as sdk  # type: ignore[import-untyped]

from storage.errors import NotSetUp
from storage.s3_errors import one_line

log = logging.getLogger(__name__)


def find_credentials(session: Any, url: str) -> None:
    """Let `session` find its credentials. Raises what botocore raises, where there are none too, and `NotSetUp`."""
    with _told(url):
        credentials = session.get_credentials()
    if credentials is None:
        raise sdk.NoCredentialsError
    log.info("%s: credentials: %s", url, _kind(credentials.method, session.profile_name))
    renewed = credentials.get_frozen_credentials

    def frozen() -> Any:
        with _told(url):
            return renewed()

    # each request is signed with what this gives; it asks the source again when they near their end
    credentials.get_frozen_credentials = frozen


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what a source raises beside the SDK's own errors into `NotSetUp`: a file that is away, a program's nonsense.

    Here alone it is known that a builtin error is a source's and no defect.
    """
    try:
        yield
    except (sdk.BotoCoreError, sdk.ClientError):  # some of them are builtin errors as well
        raise
    except (OSError, ValueError, RuntimeError) as e:
        raise NotSetUp(
            f"{url}: no AWS credentials, their source fails ({one_line(e)}); look at credential_process, "
            "AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, whichever is set"
        ) from e


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
