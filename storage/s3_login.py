"""Who asks, on S3: the SDK's own chain of credentials, whose sources fail in this house's words.

Before it comes the machine's identity on another cloud, where BATON_IDENTITY names that one: AWS_ROLE_ARN is the role
that trusts it.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore import credentials as sdk_credentials  # type: ignore[import-untyped]
from botocore import exceptions as sdk
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.httpsession import URLLib3Session  # type: ignore[import-untyped]
from botocore.utils import InstanceMetadataFetcher  # type: ignore[import-untyped]

from storage.errors import NotSetUp, StoreError, Unavailable
from storage.machine_identity import of_this_machine
from storage.mistakes import reason_of
from storage.pace import Patience

CONNECT_S = 5.0
LOOKS = 3  # at the instance's metadata, a second each by default; one packet may get lost

log = logging.getLogger("baton.storage")


def new_session() -> Any:
    """The SDK's, in the region that containers on AWS are told by AWS_REGION, which boto3 overlooks.

    The token services that it asks by itself are then that region's: not everywhere is the global one's token taken.
    """
    session, region = boto3.Session(), os.environ.get("AWS_REGION")
    return session if session.region_name or not region else boto3.Session(region_name=region)


def find_credentials(session: Any, url: str, patience: Patience) -> None:
    """Let `session` find its credentials; a token service may let it wait for `patience()` seconds, once.

    Raises what botocore raises, where there are none too, and `NotSetUp`.
    """
    _be_brief(session, patience())
    _take_machines_identity(session, patience)
    with _told(url):
        # there is no public way in; a profile's role that rests on the instance's is asked of the same provider
        chain = session._session.get_component("credential_provider")
        instance = chain.get_provider("iam-role")
        instance._role_fetcher = _Metadata(instance._role_fetcher)
        _bound_programs(chain, url, patience)
        credentials = session.get_credentials()
    if credentials is None:
        raise sdk.NoCredentialsError
    log.info("%s: credentials: %s", url, _kind(credentials.method, session.profile_name))
    renewed = credentials.get_frozen_credentials

    def frozen() -> Any:
        _be_brief(session, patience())
        with _told(url):
            return renewed()

    # each request is signed with what this gives; it asks the source again when they near their end
    credentials.get_frozen_credentials = frozen


def _take_machines_identity(session: Any, patience: Patience) -> None:
    """Log in as this machine, if that is asked for; the SDK comes back for a new token as the keys near their end."""
    identity = of_this_machine("aws", "sts.amazonaws.com", patience)
    if identity is None:
        return
    role = os.environ.get("AWS_ROLE_ARN")
    if not role:
        raise NotSetUp(f"{identity}: set AWS_ROLE_ARN to the role that trusts it")
    fetcher = sdk_credentials.AssumeRoleWithWebIdentityCredentialFetcher(
        client_creator=session._session.create_client,
        web_identity_token_loader=identity.token,
        role_arn=role,
        extra_args={"RoleSessionName": os.environ.get("AWS_ROLE_SESSION_NAME") or "baton"},
    )
    session._session._credentials = sdk_credentials.DeferredRefreshableCredentials(
        refresh_using=fetcher.fetch_credentials, method="assume-role-with-web-identity"
    )


def _be_brief(session: Any, wait: float) -> None:
    """How long the clients wait that the SDK makes by itself, one for each time that it asks a token service.

    By default that is 60 seconds, and again some times.
    """
    config = Config(
        connect_timeout=max(0.1, min(CONNECT_S, wait)),
        read_timeout=max(0.1, wait),
        retries={"total_max_attempts": 1},
    )
    session._session.set_default_client_config(config)


def _bound_programs(chain: Any, url: str, patience: Patience) -> None:
    """Wait for a `credential_process` as long as for a token service; the SDK would do so without end."""

    class Program(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **more: Any) -> None:
            super().__init__(command, stdin=subprocess.DEVNULL, **more)

        def communicate(self, *_: Any, **__: Any) -> tuple[bytes, bytes]:
            wait = max(0.1, patience())
            try:
                return super().communicate(timeout=wait)
            except subprocess.TimeoutExpired as e:
                self.kill()
                with self:  # not what it has started, which may hold its output open for as long as it likes
                    pass
                what = f"{url}: credential_process has given no credentials for {wait:.0f} s, and was ended"
                raise Unavailable(what) from e

    # a role's source profile may name a program as well, for which the SDK makes a provider later
    makers = chain.get_provider("assume-role")._profile_provider_builder
    made = makers._create_process_provider

    def make(profile: str) -> Any:
        provider = made(profile)
        provider._popen = Program
        return provider

    makers._create_process_provider = make
    chain.get_provider("custom-process")._popen = Program


class _Metadata(InstanceMetadataFetcher):  # type: ignore[misc]
    """The SDK's way to ask for the instance's role, by the same settings, but for three things.

    The SDK asks through any proxy that is set, which has no business at a link-local address and may hand out its own
    machine's role; it looks once; and it takes a service that hiccups for one that has no role.
    """

    def __init__(self, theirs: Any) -> None:
        looks = max(LOOKS, theirs._num_attempts)
        super().__init__(theirs._timeout, looks, user_agent=theirs._user_agent, config=theirs._config)
        self._session = URLLib3Session(timeout=theirs._timeout)

    def _is_non_ok_response(self, response: Any) -> bool:
        if response.status_code == 429 or response.status_code >= 500:
            raise sdk.CredentialRetrievalError(
                provider="iam-role", error_msg=f"the metadata service answers {response.status_code}"
            )
        return bool(super()._is_non_ok_response(response))


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what a source raises beside the SDK's own errors into `NotSetUp`: a file that is away, a program's nonsense.

    Here alone it is known that a builtin error is a source's and no defect.
    """
    try:
        yield
    except (sdk.BotoCoreError, sdk.ClientError, StoreError):  # some of them are builtin errors as well
        raise
    except (OSError, ValueError, RuntimeError) as e:
        raise NotSetUp(
            f"{url}: no AWS credentials, their source fails ({reason_of(e)}); look at credential_process, "
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
