"""Who this machine is, as its own cloud attests: what another cloud's store takes in place of a secret.

BATON_IDENTITY=google, azure or aws says whose machine this is. That cloud signs a token for one audience, good for an
hour or less; the store's cloud gives temporary credentials for it, and is shown a new one before they end. So there is
no secret to mount, and no token file that somebody has to refresh.

BATON_IDENTITY_AUDIENCE says for whom the token is, where it is not whom the store's cloud expects by default. On Azure
it has to: Azure signs only for an application of the tenant, by its ID URI (api://...).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.errors import NotSetUp, Unavailable
from storage.pace import Patience

CLOUDS = ("google", "azure", "aws")


@dataclass(frozen=True)
class MachineIdentity:
    cloud: str  # whose machine this is
    audience: str
    patience: Patience
    has_come: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)  # a token, once

    def token(self) -> str:
        """A new one, a JSON Web Token. Raises `NotSetUp`, `Unavailable`; neither holds it."""
        token = {"google": self._of_google, "azure": self._of_azure, "aws": self._of_aws}[self.cloud]()
        if token.count(".") != 2:
            raise Unavailable(f"{self}: its cloud answers with something that is no token")
        self.has_come.set()
        return token

    def __str__(self) -> str:
        return f"this machine's identity (BATON_IDENTITY={self.cloud}, for {self.audience})"

    def _of_google(self) -> str:
        path = "/computeMetadata/v1/instance/service-accounts/default/identity"
        asked = {"audience": self.audience, "format": "full"}
        return self._ask("BATON_GCP_METADATA", path, asked, {"Metadata-Flavor": "Google"}).strip()

    def _of_azure(self) -> str:
        import json

        asked = {"api-version": "2018-02-01", "resource": self.audience}
        if client := os.environ.get("AZURE_CLIENT_ID"):  # which of the managed identities, where there are several
            asked["client_id"] = client
        answer = self._ask("BATON_AZURE_METADATA", "/metadata/identity/oauth2/token", asked, {"Metadata": "true"})
        try:
            return str(json.loads(answer)["access_token"])
        except (ValueError, KeyError, TypeError):
            return ""

    def _ask(self, variable: str, path: str, asked: Mapping[str, str], headers: Mapping[str, str]) -> str:
        """The metadata service's answer; past any proxy, which has no business at a link-local address."""
        import requests

        from storage.pace_requests import PacedAdapter

        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", PacedAdapter(self.patience))
            url = (os.environ.get(variable) or "http://169.254.169.254") + path
            try:
                answer = session.get(url, params=asked, headers=headers, timeout=self.patience(), allow_redirects=False)
                text = answer.text
            except requests.RequestException as e:
                raise Unavailable(f"{self}: its metadata service doesn't answer ({type(e).__name__})") from e
        status = answer.status_code
        if status in (410, 429) or status >= 500:
            raise Unavailable(f"{self}: its metadata service answers {status}")
        if status != 200:
            raise NotSetUp(
                f"{self}: its metadata service gives no token ({status}: {' '.join(text.split())[:200]}); give the "
                "machine a service account (Google) or a managed identity (Azure), and look at the audience"
            )
        return text

    def _of_aws(self) -> str:
        """Of the instance's role, by STS; the account must have outbound identity federation on."""
        from botocore import exceptions as sdk  # type: ignore[import-untyped]

        from storage.s3_errors import meaning
        from storage.s3_login import find_credentials, new_session

        try:
            session = new_session()
            if not session.region_name:
                raise NotSetUp(f"{self}: set AWS_REGION to the region that this machine is in")
            find_credentials(session, str(self), self.patience)
            reply = session.client("sts").get_web_identity_token(Audience=[self.audience], SigningAlgorithm="RS256")
        except sdk.NoCredentialsError as e:
            raise NotSetUp(f"{self}: no AWS credentials; give the machine an instance profile with a role") from e
        except sdk.ClientError as e:
            code, status = e.response["Error"]["Code"], e.response["ResponseMetadata"].get("HTTPStatusCode", 0)
            if status == 429 or status >= 500 or "Throttling" in code:
                raise Unavailable(f"{self}: AWS's token service answers {code}") from e
            raise NotSetUp(
                f"{self}: AWS's token service answers {code}; the role needs sts:GetWebIdentityToken, the account "
                "`aws iam enable-outbound-web-identity-federation`"
            ) from e
        except sdk.BotoCoreError as e:
            raise meaning(e, str(self), "", "AWS's token service", known=self.has_come.is_set()) from e
        return str(reply["WebIdentityToken"])


def of_this_machine(store: str, audience: str, patience: Patience) -> MachineIdentity | None:
    """What to log in with to a store on the cloud `store`; None where it isn't asked for, or the machine is there too.

    `audience`: whom that cloud expects tokens to be for. `patience`: seconds that a request may wait. Raises
    `NotSetUp`.
    """
    cloud = os.environ.get("BATON_IDENTITY", "").strip().lower()
    if cloud in ("", store):
        return None
    if cloud not in CLOUDS:
        raise NotSetUp(f"BATON_IDENTITY={cloud}: must be the cloud that this machine is on, one of {', '.join(CLOUDS)}")
    audience = os.environ.get("BATON_IDENTITY_AUDIENCE") or ("" if cloud == "azure" else audience)
    if not audience:
        raise NotSetUp(f"BATON_IDENTITY={cloud}: set BATON_IDENTITY_AUDIENCE to the application's ID URI (api://...)")
    return MachineIdentity(cloud, audience, patience)
