"""The SDK's client for S3: how long a request may wait, at what pace an answer must come."""

from __future__ import annotations

from http.client import parse_headers
from typing import Any

from botocore.awsrequest import (  # type: ignore[import-untyped]
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.config import Config  # type: ignore[import-untyped]

from storage.errors import NotSetUp, one_line
from storage.pace import Patience, pools
from storage.s3_login import CONNECT_S, find_credentials, new_session


def connect(url: str, patience: Patience, connections: int) -> Any:
    """A client for the store at `url`. Raises what botocore raises where there are no credentials, and `NotSetUp`."""
    session = new_session()
    find_credentials(session, url, patience)
    config = Config(
        retries={"total_max_attempts": 1},  # retrying is a wrapper's, which knows the deadline
        connect_timeout=max(0.1, min(CONNECT_S, patience())),
        max_pool_connections=connections,
        response_checksum_validation="when_required",  # done by the store, over the whole object
        user_agent_extra="baton",
    )
    try:
        client = session.client("s3", config=config)
    except ValueError as e:  # "Invalid endpoint", or a region's name that can be none
        raise NotSetUp(f"{url}: {one_line(e)}; look at AWS_ENDPOINT_URL_S3 and AWS_REGION") from e

    def set_patience(context: dict[str, Any], **_: Any) -> None:
        context["read_timeout"] = max(0.1, patience())

    client.meta.events.register("before-call.s3", set_patience)
    # botocore has no public way to choose the classes of its connections; its managers all look into this one table
    http = client._endpoint.http_session
    http._pool_classes_by_scheme.update(pools(patience, _Pool, _TLSPool))
    return client


class _Expecting:
    """What answers `Expect: 100-continue` before a body is sent is read as any other answer.

    botocore reads it line by line, however long and however slow they are, and takes what it then makes of an early
    refusal from a class of its own, past the pools' one.
    """

    response_class: Any
    sock: Any

    def _handle_expect_response(self: Any, body: Any) -> None:
        answer, patience = self.response_class(self.sock, method=self._method), self.sock.gettimeout()
        first = answer._read_status()
        if first[1] == 100:
            parse_headers(answer.fp)
            self.sock.settimeout(patience)
            self._send_message_body(body)
        else:
            answer._read_status = lambda: first
            self._response_received = True  # no body is sent any more
        # some of what follows may have been read with it; until the next request
        self.response_class = lambda *_, **__: answer


class _Connection(_Expecting, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_Expecting, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _Connection


class _TLSPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _TLSConnection


def sends_checksums(client: Any) -> bool:
    """AWS_REQUEST_CHECKSUM_CALCULATION=when_required is how one keeps them from servers that refuse them."""
    return bool(client.meta.config.request_checksum_calculation != "when_required")
