"""What of this machine's own settings keeps it from a store, told without repeating what may be a secret in them."""

import os
import re

from storage.errors import one_line

# What is said of a proxy's address: by urllib3, of one for SOCKS, and by botocore, which puts http:// before others.
_NO_PROXYS = (
    "Failed to parse: |check proxy URL|Proxy URL had unsupported scheme|Invalid IPv6 URL|'ascii' codec|SOCKS support"
    r'|proxy URL: "http://\w+://'
)


def mistake_here(error: BaseException) -> str | None:
    """What a person must mend on this machine, where its own settings are why there is no connection.

    By the words of requests, urllib3 and botocore. They are not repeated: part of a proxy's password may be in them.
    """
    words = str(error)
    bundle = "REQUESTS_CA_BUNDLE (AWS_CA_BUNDLE for S3)"
    if "CERTIFICATE_VERIFY_FAILED" in words:
        why = words.rpartition("CERTIFICATE_VERIFY_FAILED] ")[2].partition(" (_ssl")[0]
        return (
            f"the server's certificate is not trusted here ({one_line(why)}): set this machine's clock (chrony or "
            f"systemd-timesyncd), or {bundle} to your proxy's"
        )
    unreadable = r"SSL(Error\(| validation failed).*(No such file|Permission denied|Is a directory)"
    if re.search(f"invalid path: |NO_CERTIFICATE_OR_CRL|{unreadable}", words):
        return f"{bundle} names no file of certificates that can be read: mount it with -v FILE:PATH:ro"
    kinds = ("https_proxy", "http_proxy", "all_proxy")
    proxies = " or ".join(name for name, value in os.environ.items() if value and name.lower() in kinds)
    if proxies and re.search(_NO_PROXYS, words):
        return (
            f"{proxies} is no address of a proxy: write it http://HOST:PORT, or with NAME:PASSWORD@ before the "
            "HOST, and / # ? @ in the password as %2F %23 %3F %40"
        )
    return None


def reason_of(error: Exception) -> str:
    """Why a file can't be read, with its path only if that is whole: else it may be what is in a file, not its path."""
    if not isinstance(error, OSError) or error.strerror is None:
        return one_line(error)
    path = str(error.filename or "")
    return f"{path}: {error.strerror}" if path.startswith("/") else error.strerror
