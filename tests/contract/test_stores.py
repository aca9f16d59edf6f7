"""The store contract, kept by every store that is known here. A new store is one line in `PLACES`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from store_contract import MALFORMED, Place, StoreContract, finish, spawn

from storage import ObjectInfo, open_store
from storage.errors import InvalidKey, InvalidURL, NotSetUp
from storage.protocol import check_key, check_prefix

# name -> a fresh place, given a folder that is this test's alone
PLACES: dict[str, Callable[[Path], Place]] = {
    "local": lambda folder: Place(lambda: open_store(f"file://{folder}/store")),
}


class TestStores(StoreContract):
    @pytest.fixture(params=PLACES)
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
        return PLACES[request.param](tmp_path)


# --- what holds without any store


def test_legal_keys_and_prefixes_pass_as_they_are() -> None:
    for key in ("run/parts/" + "0" * 64, "a", "..a/b"):
        assert check_key(key) == key
        assert check_prefix(key) == key
    for prefix in ("", "run/", "run/checkpoints/0000"):
        assert check_prefix(prefix) == prefix


@pytest.mark.parametrize("key", MALFORMED, ids=lambda key: ascii(key)[:30])
def test_a_malformed_key_is_refused_and_shown_in_one_printable_line(key: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        check_key(key)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_prefix_in_a_listing_is_told_from_an_object() -> None:
    assert not ObjectInfo("run/a", 0, 0.0).is_prefix
    assert ObjectInfo("run/", 0, 0.0).is_prefix


SDKS = {
    "file:///tmp": None,
    "s3://bucket": "botocore",
    "gs://bucket": "google.cloud.storage",
    "az://account/abc": "azure",
}


@pytest.mark.parametrize(("url", "own"), SDKS.items())
def test_no_sdk_is_imported_but_that_of_the_scheme_in_use(url: str, own: str | None) -> None:
    code = "import sys, entrypoint; entrypoint.open_store(sys.argv[1]).url; print(*sys.modules)"
    process = spawn(code, url, STORAGE_EMULATOR_HOST="http://127.0.0.1:9", AZURE_STORAGE_KEY="a2V5")
    imported = set(finish(process).split())
    assert {name for name in SDKS.values() if name in imported} == ({own} if own else set())
    assert "torch" not in imported


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("s3://bucket/runs", "no AWS credentials .*at a desk: aws configure.*; else "),
        ("gs://bucket/runs", "no Google credentials .*at a desk: gcloud auth application-default login; else "),
        ("az://batonnobody/bucket/runs", "no Azure credentials; at a desk: az login; else "),
    ],
)
def test_without_credentials_the_line_names_the_store_and_the_mend(
    url: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_", "BATON_IDENTITY"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "PATH", "CLOUDSDK_CONFIG"):  # nobody's files, nobody's `az login`
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    with pytest.raises(NotSetUp, match=f"^{url}: {line}") as caught:
        open_store(url).stat("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("/store", "file:///store"),
        ("gs:/bucket", "URL"),
        ("fil:///store", "did you mean file://"),
        ("nonsense://bucket", "file://"),
        ("file://store", "file://./folder"),
        ("file://", "file://./folder"),
    ],
)
def test_an_url_that_is_not_understood_says_how_to_write_it(url: str, hint: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        open_store(url)
    assert hint in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:SECRET@bucket/prefix",
        "s3://KEY:SEC/RET@bucket",
        "s3://bucket/prefix?X-Amz-Signature=SECRET",
        "gs://bucket?sig=SECRET",
        "az://account/container?sv=1&sig=SECRET",
        "az://account/container/prefix?sv=1&sig=SECRET@x",
        "s3a://KEY:SECRET@bucket/prefix",
        "https://account.blob.core.windows.net/container?sv=1&sig=SECRET",
        "account.blob.core.windows.net/container?sv=1&sig=SECRET",
        "KEY:SECRET@s3://bucket",
    ],
)
def test_an_url_that_may_hold_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        open_store(url)
    for word in ("SEC", "RET", "KEY"):
        assert word not in str(caught.value)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/me@home/what?")
    store.put("a", b"1")
    assert [info.key for info in store.list("")] == ["a"]
