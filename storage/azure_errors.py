"""What Azure says when it doesn't do as it is told, in this house's words."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from azure.core.exceptions import HttpResponseError

from storage.azure_login import Login, first_line
from storage.errors import Damaged, NotFound, NotSetUp, PermissionDenied, StoreError, Unavailable
from storage.headers import moment_of
from storage.mistakes import mistake_here

_ROLE = "the role Storage Blob Data Contributor"
_UNKNOWN = ("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation")  # who asks, that is

# what a 403 may be about but a right, by Azure's codes; each with what to do
_FORBIDDEN = {
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: use an identity, or a SAS of a user delegation "
    "(az storage container generate-sas --as-user --auth-mode login)",
    "AccountIsDisabled": "enable the account, or the subscription that pays for it",
}


def meaning(error: Exception, key: str, place: str, login: Login, action: str, sas: str, *, known: bool) -> StoreError:
    """What the SDK raised, as the store's own; `action` and `sas` are what Azure calls the right that it takes.

    `known`: the account has answered before, so that its name is right.
    """
    if not isinstance(error, HttpResponseError):
        return _no_answer(error, key, place, login, known)
    if error.response is None:
        return Unavailable(f"{key}: {place}: {first_line(error)}")
    return _refusal(error, key, place, login, action, sas)


def not_azures(place: str, key: str) -> StoreError:
    return Unavailable(f"{key}: what answers for {place} is not Azure: is there a login page in between?")


def _no_answer(error: Exception, key: str, place: str, login: Login, known: bool) -> StoreError:
    reason = first_line(error)
    host = urlsplit(login.endpoint).netloc
    if reason.startswith("MD5 mismatch"):
        return Damaged(f"{key}: {place}: came with other bytes than were sent ({reason})")
    if not known and (mistake := mistake_here(error)):
        return NotSetUp(f"{host}: {mistake}")
    if f"Failed to resolve '{urlsplit(login.endpoint).hostname}'" in reason:
        # EAI_NONAME, in the words of Linux, of musl and of macOS; without a network it mostly is EAI_AGAIN
        unknown = re.search("not known|does not resolve", reason)
        kind = NotSetUp if unknown and not known else Unavailable
        return kind(f"{host}: no such name: is the account's name right, and is there a network?")
    own = ".blob." not in host and "Failed to establish" in reason
    hint = "; is it running? BlobEndpoint or AZURE_STORAGE_SERVICE_ENDPOINT says where" * own
    return Unavailable(f"{key}: no whole answer from {host}: {reason}{hint}")


def _refusal(error: HttpResponseError, key: str, place: str, login: Login, action: str, sas: str) -> StoreError:
    """What an answer that is no success means. The codes: Azure's manual, "Blob service error codes"."""
    status, code = error.status_code or 0, code_of(error)
    said = f"{place} answered {status} {code or 'without a code of Azure'}"
    if code == "BlobNotFound":
        return NotFound(f"{key}: not there")
    if code == "ContainerNotFound":
        account, container = place.removeprefix("az://").split("/")
        return NotSetUp(
            f"{place}: no such container; make it: az storage container-rm create "
            f"--storage-account {account} --name {container}"
        )
    if code in ("Md5Mismatch", "InvalidMd5") or (status == 400 and "contentMD5" in first_line(error)):  # azurite
        return Damaged(f"{key}: {said}: what arrived is not what was sent")
    if status == 401 or code in _UNKNOWN or (status == 403 and "failed to authenticate" in first_line(error)):
        return NotSetUp(f"{said} to the {login.name}: {login.why_refused(_detail(error), _date(error))}")
    if status == 403:
        usual = (
            f"it needs {_ROLE} on the container (action {action}; in a SAS sp={sas}), and the account's firewall must "
            "let this machine in"
        )
        return PermissionDenied(f"{key}: {said} to the {login.name}: {_FORBIDDEN.get(code, usual)}")
    if code == "InvalidBlockList":  # another put of this key has ended, and Azure has dropped the blocks of this one
        return Unavailable(f"{key}: {said}")
    if status in (408, 429) or status >= 500 or not code:  # without: what answered is not Azure, but in between
        return Unavailable(f"{key}: {said}")
    if code in ("ContainerBeingDeleted", "ContainerDisabled") or status == 404:
        return NotSetUp(f"{said}: {first_line(error)}")
    return StoreError(f"{key}: {said}: {first_line(error)}")


def code_of(error: HttpResponseError) -> str:
    """Azure's own name for what is wrong; "" where the answer names none."""
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _date(error: HttpResponseError) -> float | None:
    """What the time is by the clock of Azure, or of the proxy that answered."""
    return moment_of(getattr(error.response, "headers", {}).get("date"))


def _detail(error: HttpResponseError) -> str:
    more: dict[str, str] = getattr(error, "additional_info", None) or {}
    return more.get("authenticationerrordetail") or first_line(error)
