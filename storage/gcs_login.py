"""Who asks, on Google: Application Default Credentials, and how their tokens are fetched."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import google.auth
import requests
from google.auth import compute_engine, external_account, impersonated_credentials
from google.auth.credentials import AnonymousCredentials, Credentials, with_scopes_if_required
from google.auth.exceptions import DefaultCredentialsError, TransportError
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from storage.errors import NONSENSE, NotSetUp, one_line
from storage.mistakes import reason_of
from storage.pace_requests import PacedAdapter

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal", "metadata")

log = logging.getLogger("baton.storage")
# what it warns of is that no project is known, which objects don't need, and what NotSetUp says as well
logging.getLogger("google.auth").setLevel(logging.ERROR)


class AuthRequest(Request):
    """How tokens are fetched: as patiently as the rest, and from a metadata service never through a proxy."""

    def __init__(self, patience: Callable[[], float]) -> None:
        session = requests.Session()
        for scheme in ("https://", "http://"):
            session.mount(scheme, PacedAdapter(patience))
        super().__init__(session)
        self._patience = patience

    def __call__(
        self, url: str, method: str = "GET", body: Any = None, headers: Any = None, timeout: Any = None, **more: Any
    ) -> Any:
        wait = self._patience()
        if urlsplit(url).hostname in METADATA_HOSTS:
            more["proxies"] = {"http": None, "all": None}  # where only one is named, requests takes the other
        short = min(timeout, wait) if isinstance(timeout, int | float) else wait
        answer = super().__call__(url, method, body, headers, short, **more)  # type: ignore[no-untyped-call]
        if answer.status == 429 or answer.status >= 500:  # else the SDK takes it for a refusal of the credentials
            raise TransportError(f"{urlsplit(url).hostname} answers {answer.status}")  # type: ignore[no-untyped-call]
        return answer


CREDENTIALS_MEND = (
    "at a desk: gcloud auth application-default login; else attach a service account to the machine, or name a "
    "credentials file in GOOGLE_APPLICATION_CREDENTIALS (a mounted secret, or a workload identity federation "
    "configuration)"
)


def find_credentials(url: str, patience: Callable[[], float]) -> Credentials:
    """Application Default Credentials for the store at `url`, or none where an emulator is named. Raises `NotSetUp`."""
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        if not emulator.startswith(("http://", "https://")):
            raise NotSetUp(f"{url}: STORAGE_EMULATOR_HOST={emulator}: write it with its scheme, http://{emulator}")
        log.info("credentials: none, as STORAGE_EMULATOR_HOST is set")
        return AnonymousCredentials()  # type: ignore[no-untyped-call]
    file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    if file and not file.startswith("/") and not os.path.exists(file):  # the library would repeat it, a key maybe
        raise NotSetUp(
            f"{url}: GOOGLE_APPLICATION_CREDENTIALS is no file here: it wants a file's path, not its content"
        )
    try:
        # scopes are given afterwards: with them, federated credentials would ask the resource manager for a project
        found, _ = google.auth.default(request=AuthRequest(patience))
    except DefaultCredentialsError as e:
        words = one_line(e.args[0]).partition(" To set up Application Default")[0]
        raise NotSetUp(f"{url}: no Google credentials ({words.rstrip('.')}); {CREDENTIALS_MEND}") from e
    except OSError as e:
        raise NotSetUp(f"{url}: the credentials file can't be read: {reason_of(e)}") from e
    except NONSENSE as e:
        which = file or "gcloud's own file"
        raise NotSetUp(f"{url}: no Google credentials ({which} holds something else); {CREDENTIALS_MEND}") from e
    log.info("credentials: %s", _who(found))
    return cast(Credentials, with_scopes_if_required(found, [SCOPE]))  # type: ignore[no-untyped-call]


def _who(found: Credentials) -> str:
    """Kind and name, never the value."""
    file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "gcloud's own file")
    email = getattr(found, "service_account_email", None)
    if isinstance(found, impersonated_credentials.Credentials):
        return f"service account {email} by impersonation ({file})"
    if isinstance(found, service_account.Credentials):
        return f"service account {email} by its key ({file})"
    if isinstance(found, external_account.Credentials):
        name = f"service account {email}" if email else f"principal of {found.info['audience']}"
        return f"{name} by workload identity federation ({file})"
    if isinstance(found, compute_engine.Credentials):
        return "this machine's service account by its metadata service"
    return f"a user's, by gcloud auth application-default login ({file})"
