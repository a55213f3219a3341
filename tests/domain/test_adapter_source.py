"""Names of sources: what they are read as, which other texts are refused, and which an operator's patterns cover."""

import pytest

from app.domain.adapter_source import BucketSource, HubSource, Provenance, SourcePatterns, source_of
from app.domain.errors import BAD_SOURCE, Refused


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", "main", "")),
        ("hf://org/name/", ("org/name", "main", "")),
        ("hf://org/name@v1.0", ("org/name", "v1.0", "")),
        ("hf://org/na.me_x-1/sub/folder", ("org/na.me_x-1", "main", "sub/folder")),
        ("hf://org/name@abc123/checkpoint-5", ("org/name", "abc123", "checkpoint-5")),
    ],
)
def test_a_name_on_the_hub_is_a_repository_a_revision_and_a_folder(text: str, parts: tuple[str, str, str]) -> None:
    found = source_of(text)
    assert isinstance(found, HubSource)
    assert (found.repository, found.revision, found.folder) == parts
    assert source_of(str(found)) == found


def test_a_name_in_a_bucket_is_the_bucket_and_a_prefix() -> None:
    found = source_of("s3://adapters.example/acme/sql_v2/")
    assert found == BucketSource("adapters.example", "acme/sql_v2")
    assert found.path("adapter_config.json") == "acme/sql_v2/adapter_config.json"


@pytest.mark.hostile("U28")
@pytest.mark.parametrize(
    "text",
    [
        *("", "sql", "/etc", "./sql", "file:///etc/passwd", "https://huggingface.co/org/name", "http://10.0.0.1/x"),
        *(
            "hf://",
            "hf://org",
            "hf://org/../x",
            "hf://org/name/..",
            "hf://org/name@",
            "hf://org/name@a b",
            "hf://o/n\n",
        ),
        *("hf://org/name@..", "hf://org/name@a/../b", "hf://org/name?x=1", "hf://org/name#x", "hf://org/na%2e%2e"),
        *("HF://org/name", "hf:/org/name", "hf://user:pw@org/name", "hf://org/name/" + "a" * 1024, "hf://örg/name"),
        *("s3://bucket", "s3://bucket/", "s3://bucket/../x", "s3://bucket/a/../b", "s3://bucket//a", "s3://b/x"),
        *("s3://bucket/a?versionId=1", "s3://bucket/a b", "s3://BUCKET/a", "s3://10.0.0.1:80/a", "s3://bucket/a\\b"),
        *("oci://registry/repo@sha256:00", "gs://bucket/x", "git+ssh://host/x"),
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="is not of the form") as caught:
        source_of(text)
    assert caught.value.code is BAD_SOURCE
    assert "docs/importing.md" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "source", "allowed"),
    [
        ("hf://acme/sql", "hf://acme/sql", True),
        ("hf://acme/sql", "hf://acme/sql@v2/folder", True),
        ("hf://acme/sql", "hf://acme/sql2", False),
        ("hf://acme/*", "hf://acme/sql", True),
        ("hf://acme/*", "hf://acme-evil/sql", False),
        ("hf://acme/*", "s3://acme/sql", False),
        ("hf://*", "hf://anybody/anything", True),
        ("s3://adapters/acme/*", "s3://adapters/acme/sql", True),
        ("s3://adapters/acme/*", "s3://adapters/acme-evil/sql", False),
        ("s3://adapters/acme/*", "s3://adapters/acme", False),
        ("s3://adapters/acme", "s3://adapters/acme", True),
        ("s3://adapters/acme", "s3://adapters/acme/sql", False),
        ("s3://adapters/{tenant}/*", "s3://adapters/acme/sql", True),
        ("s3://adapters/{tenant}/*", "s3://adapters/globex/sql", False),
        ("hf://{tenant}/*", "hf://acme/sql", True),
    ],
)
def test_a_pattern_covers_what_stands_there(pattern: str, source: str, allowed: bool) -> None:
    assert SourcePatterns.of([pattern]).allow(source_of(source), "acme") is allowed
    assert not SourcePatterns().allow(source_of(source), "acme")


@pytest.mark.parametrize(
    "entry",
    ["*", "https://*", "hf://", "hf://acme", "hf://*/sql", "hf://acme/*/x", "s3://*", "s3://bucket", "s3://b/*/c"],
)
def test_a_pattern_that_would_be_misread_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        SourcePatterns.of([entry])


def test_provenance_is_read_as_it_was_written() -> None:
    found = Provenance("hf://org/name@main", {"commit": "c0ffee"})
    assert Provenance.read(found.plain()) == found
