"""Who asks, on Azure: the credentials of storage/azure.py.

The first of these that is there, unless it is a connection string all by names that the az tool also reads:

    AZURE_STORAGE_SECRET_FILE          path of a mounted file with one of the three below in it
    AZURE_STORAGE_CONNECTION_STRING
    AZURE_STORAGE_SAS_TOKEN
    AZURE_STORAGE_KEY                  the account's key: may do everything to all of it
    AZURE_FEDERATED_TOKEN_FILE         workload identity, with AZURE_CLIENT_ID and AZURE_TENANT_ID
    BATON_IDENTITY                     the same, by this machine's identity on the cloud that it names
    on Azure                           the managed identity AZURE_CLIENT_ID, or the machine's own
    elsewhere                          DefaultAzureCredential: AZURE_CLIENT_CERTIFICATE_PATH and its like, `az login`

AZURE_STORAGE_SERVICE_ENDPOINT replaces https://ACCOUNT.blob.core.windows.net.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from azure.core.credentials import AccessToken, AccessTokenInfo, AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import RequestsTransport

from storage.errors import NotSetUp, StoreError, Unavailable, unwrapped
from storage.machine_identity import of_this_machine
from storage.mistakes import mistake_here, reason_of
from storage.pace_requests import PacedAdapter

ASSET_TAG = Path("/sys/class/dmi/id/chassis_asset_tag")
AZURES_TAG = "7783-7084-3265-9085-8269-3286-77"  # of every virtual machine on Azure
MOST_SKEW_S = 15 * 60.0  # Azure takes no request signed longer ago
# A token is fetched in the midst of a request to the store, which the caller may be waiting on with a deadline.
TOKEN_S = 10.0
CONNECT_S = 5.0
DEFAULT = "DefaultAzureCredential"
_TIMES: dict[str, Any] = {"connection_timeout": CONNECT_S, "read_timeout": TOKEN_S}
# auto_request_id: by uuid1(); see `storage.azure._Once`
_BRIEF: dict[str, Any] = {"retry_total": 1, "auto_request_id": False, **_TIMES}

log = logging.getLogger("baton.storage")
_told: set[str] = set()
_telling = threading.Lock()


@dataclass(frozen=True)
class Login:
    endpoint: str
    credential: Any = field(repr=False)  # as the SDK takes it
    name: str  # of what kind and whose; never its value

    def why_refused(self, detail: str, azures_time: float | None) -> str:
        """What to do about credentials that Azure doesn't take, for the reason `detail`, told at `azures_time`."""
        now = datetime.now(UTC)
        off = azures_time is not None and abs(azures_time - now.timestamp()) > MOST_SKEW_S
        if off or "date header" in detail.lower():
            return "this machine's clock is wrong: set it (chronyc makestep, timedatectl set-ntp true)"
        end = _end(self.credential.signature) if isinstance(self.credential, AzureSasCredential) else None
        if end and end < now:
            return f"it expired at {end:%Y-%m-%d %H:%M} UTC: make a new one (az storage container generate-sas)"
        return f"renew or correct it ({detail})"


def log_in(account: str, url: str) -> Login:
    """Who asks the account of the store at `url`, and where.

    Raises `NotSetUp`, which names the store, for what can be seen to be no credentials.
    """
    try:
        login = _log_in(account, url)
        if not _is_address(login.endpoint):  # which is not repeated: what follows a lost ";" may be a key
            wanted = "AZURE_STORAGE_SERVICE_ENDPOINT, or BlobEndpoint in the connection string, is no address"
            raise NotSetUp(f"{wanted}: write it https://HOST")
        return login
    except NotSetUp as e:
        raise NotSetUp(f"{url}: {e}") from e
    except (ValueError, OSError) as e:  # the SDK's, of what it is made from, before anything is asked
        raise NotSetUp(
            f"{url}: no Azure credentials ({reason_of(e)}); look at AZURE_TENANT_ID, AZURE_CLIENT_CERTIFICATE_PATH, "
            "AZURE_AUTHORITY_HOST, AZURE_STORAGE_SERVICE_ENDPOINT, whichever is set"
        ) from e


def _is_address(endpoint: str) -> bool:
    try:
        where = urlsplit(endpoint)
        return bool(where.hostname) and where.port != 0
    except ValueError:
        return False


def _log_in(account: str, url: str) -> Login:
    endpoint = os.environ.get("AZURE_STORAGE_SERVICE_ENDPOINT", "").rstrip("/")
    endpoint = endpoint or f"https://{account}.blob.core.windows.net"
    login = _by_secret(account, endpoint)
    if login:
        _tell_once(login.name)
        return login
    if not endpoint.startswith("https://"):
        raise NotSetUp("AZURE_STORAGE_SERVICE_ENDPOINT is no https:// address: a token is sent over https:// only")
    credential, name = _identity()
    return Login(endpoint, _Token(credential, name, url), name)


def _by_secret(account: str, endpoint: str) -> Login | None:
    for variable, secret in _secrets():
        source = f"from {variable}"
        if "AccountName=" in secret or "BlobEndpoint=" in secret or variable.endswith("CONNECTION_STRING"):
            return _by_connection_string(account, secret, source)
        if re.search(r"(?:^|[?&])sig=", secret):  # a key may end in sig==, and would be sent in each address
            return Login(endpoint, AzureSasCredential(secret.lstrip("?")), f"SAS token {source}")
        return Login(endpoint, AzureNamedKeyCredential(account, _key(secret, source)), f"key of {account} {source}")
    return None


def _secrets() -> Iterator[tuple[str, str]]:
    path = os.environ.get("AZURE_STORAGE_SECRET_FILE")
    if path:
        try:
            secret = Path(path).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "is no text"
            # what it names is not repeated: it may be the secret itself
            wanted = "it wants the path of a file that holds the secret, mounted with -v FILE:PATH:ro"
            raise NotSetUp(f"AZURE_STORAGE_SECRET_FILE: {reason}: {wanted}") from e
        if not secret:
            raise NotSetUp(f"AZURE_STORAGE_SECRET_FILE={path}: is empty")
        yield "AZURE_STORAGE_SECRET_FILE", secret
    for variable in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_KEY"):
        if secret := os.environ.get(variable, "").strip():
            yield variable, secret


def _by_connection_string(account: str, text: str, source: str) -> Login:
    """Azure's manual, "Configure Azure Storage connection strings"."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    fields = {name.strip().lower(): value for name, _, value in pairs}
    theirs = fields.get("accountname", account)
    if not re.fullmatch("[a-z0-9]{3,24}", theirs):  # with a key in it, where a ";" got lost
        raise NotSetUp(f"the connection string {source} has no AccountName that could be one: copy it whole")
    if theirs != account:
        raise NotSetUp(f"the connection string {source} is for the account {theirs}, the store's URL names {account}")
    scheme, suffix = fields.get("defaultendpointsprotocol", "https"), fields.get("endpointsuffix", "core.windows.net")
    endpoint = fields.get("blobendpoint", f"{scheme}://{account}.blob.{suffix}").rstrip("/")
    if key := fields.get("accountkey"):
        return Login(endpoint, AzureNamedKeyCredential(account, _key(key, source)), f"key of {account} {source}")
    if sas := fields.get("sharedaccesssignature"):
        return Login(endpoint, AzureSasCredential(sas.lstrip("?")), f"SAS token {source}")
    raise NotSetUp(f"the connection string {source} has neither AccountKey nor SharedAccessSignature: copy it whole")


def _key(text: str, source: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except ValueError as e:  # no base64, or no ASCII
        raise NotSetUp(f"the account key {source} is not base64: copy it whole (az storage account keys list)") from e
    return text


def _end(sas: str) -> datetime | None:
    try:
        end = datetime.fromisoformat(parse_qs(sas)["se"][0])
    except (KeyError, ValueError):
        return None
    return end if end.tzinfo else end.replace(tzinfo=UTC)


def _identity(asset_tag: Path = ASSET_TAG) -> tuple[Any, str]:
    """The cloud's own chain, as far as it can't hang: a metadata service is asked on Azure alone."""
    # late: whoever has a secret needs none of it, and its import takes a fifth of a second
    from azure.identity import (
        ClientAssertionCredential,
        DefaultAzureCredential,
        ManagedIdentityCredential,
        WorkloadIdentityCredential,
    )

    client = os.environ.get("AZURE_CLIENT_ID", "").rstrip("/")
    from_file = os.environ.get("AZURE_FEDERATED_TOKEN_FILE")
    identity = None if from_file else of_this_machine("azure", "api://AzureADTokenExchange", lambda: TOKEN_S)
    if from_file or identity:
        missing = [name for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID") if not os.environ.get(name)]
        if missing:
            source = "AZURE_FEDERATED_TOKEN_FILE" if from_file else "BATON_IDENTITY"
            raise NotSetUp(f"{source} is set: workload identity also wants {' and '.join(missing)}")
        if identity is None:
            name = f"workload identity {client} by AZURE_FEDERATED_TOKEN_FILE"
            return WorkloadIdentityCredential(transport=_transport(), **_BRIEF), name
        tenant = os.environ["AZURE_TENANT_ID"]
        own = ClientAssertionCredential(tenant, client, identity.token, transport=_transport(), **_BRIEF)
        return own, f"workload identity {client} by {identity}"
    if _on_azure(asset_tag):
        by_name = client.startswith("/")  # /subscriptions/..., an identity's resource id, which ends with its name
        which = {"identity_config": {"resource_id": client}} if by_name else {"client_id": client or None}
        # at a link-local or loopback address: a proxy, set for the internet, has no business there
        credential = ManagedIdentityCredential(**which, transport=_transport(direct=True), **_BRIEF)
        return credential, f"managed identity {client.rpartition('/')[2] or 'of this machine'}"
    return DefaultAzureCredential(exclude_managed_identity_credential=True, **_BRIEF), DEFAULT


def _transport(*, direct: bool = False) -> RequestsTransport:
    """`direct`: past any proxy that is set."""
    session = requests.Session()
    session.trust_env = not direct
    for scheme in ("https://", "http://"):
        session.mount(scheme, PacedAdapter(lambda: TOKEN_S))
    return RequestsTransport(session=session, **_TIMES)  # which a credential hands on to a transport of its own alone


def _on_azure(asset_tag: Path) -> bool:
    if os.environ.get("IDENTITY_ENDPOINT") or os.environ.get("MSI_ENDPOINT"):  # App Service, Container Apps, Arc, ML
        return True
    try:
        return asset_tag.read_text().strip() == AZURES_TAG
    except OSError:
        return False


class _Token:
    """A token credential of the SDK that tells once which one won, and fails in the store's own words."""

    def __init__(self, credential: Any, name: str, url: str) -> None:
        self._credential = credential
        self._name = name
        self._url = url
        self._came = False  # a token, at least once

    def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
        info = self.get_token_info(*scopes, options=kwargs or None)
        return AccessToken(info.token, info.expires_on)

    def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        try:
            info: AccessTokenInfo = self._credential.get_token_info(*scopes, options=options)
        except StoreError:  # the machine's identity, in words of its own
            raise
        except (AzureError, ValueError, OSError) as e:  # ValueError: an empty token file; OSError: none
            raise self._failure(e) from e
        self._came = True
        winner = getattr(self._credential, "_successful_credential", None)  # a chain's; told nowhere else but in a log
        _tell_once(f"{self._name}: {type(winner).__name__}" if winner else self._name)
        return info

    def _failure(self, error: Exception) -> StoreError:
        for cause in _causes(error):
            if not self._came and (mistake := mistake_here(cause)):
                return NotSetUp(f"{self._url}: {self._name}: no token: {mistake}")
            status = cause.status_code if isinstance(cause, HttpResponseError) else None
            if isinstance(cause, ServiceRequestError | ServiceResponseError) or status in (404, 408, 410, 429):
                return Unavailable(f"{self._url}: {self._name}: no token: {first_line(cause)}")
            if (status and status >= 500) or isinstance(cause, json.JSONDecodeError):  # an error's page
                return Unavailable(f"{self._url}: {self._name}: no token: its service answered with an error")
        if self._name == DEFAULT:
            return NotSetUp(
                f"{self._url}: no Azure credentials{_entra(error)}; at a desk: az login; else give the machine a "
                "managed identity, set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE or "
                "AZURE_CLIENT_CERTIFICATE_PATH, or mount a secret and set AZURE_STORAGE_SECRET_FILE"
            )
        reason = reason_of(error) if isinstance(error, OSError) else first_line(error)
        return NotSetUp(f"{self._url}: {self._name}: no token{_entra(error) or f': {reason}'}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _entra(error: Exception) -> str:
    """What Microsoft Entra said, of all that the SDK says; it holds no secret."""
    match = re.search(r"AADSTS\d+: [^\r\n]*?(?=\.? ?Trace ID|[\r\n]|$)", str(error))
    return f": {match[0][:300]}" if match else ""


def first_line(error: BaseException) -> str:
    """The first line of what the SDK says, without a SAS's signature and what a socket's object looks like."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"sig=[^&\s]*", "sig=...", re.sub(r"<[^>]*>(: )?", "", unwrapped(lines[0])))[:300]


def _tell_once(name: str) -> None:
    with _telling:
        if name not in _told:
            _told.add(name)
            log.info("credentials: %s", name)
