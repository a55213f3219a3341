"""Copies what a gateway serves now to object storage, as folders Ray Serve LLM can load: see docs/ray-serve.md.

    python export.py DATA BUCKET PREFIX      with GATEWAY_URL, GATEWAY_API_KEY (role upload) and AWS_… in the environment

DATA is the gateway's data directory; the gateway and boto3 are installed where this runs. Each published version becomes
PREFIX/<adapter>@<digest12>/ with the two files of its artefact and nothing else. A folder never changes; one that is no
longer published is removed with --prune. A digest that does not match its artefact stops everything: the copy is checked,
not trusted.
"""

import argparse
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, content_digest

FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
SHORT: Final = 12
"""Characters of the digest in a folder's name."""


def published() -> Iterator[tuple[str, str]]:
    """(adapter, digest) of each version that answers requests and has an artefact of its own."""
    request = urllib.request.Request(os.environ["GATEWAY_URL"].rstrip("/") + "/adapters")
    request.add_header("authorization", f"Bearer {os.environ.get('GATEWAY_API_KEY', '')}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        adapters = json.load(answer)["adapters"]
    for adapter in adapters:
        for version in adapter["versions"]:
            if version["model"] is not None and version["digest"] is not None and version["withheld"] is None:
                yield adapter["name"], version["digest"]


def checked(artefact: Path) -> dict[str, bytes]:
    """The two files, if they are what their digest says. Raises SystemExit."""
    found = {name: (artefact / name).read_bytes() for name in FILES}
    if content_digest(found[CONFIG_FILE], found[WEIGHTS_FILE]).hex != artefact.name:
        raise SystemExit(f"{artefact} is damaged")
    return found


def export(s3: Any, data: Path, bucket: str, prefix: str, *, prune: bool) -> None:
    """One pass. Weights first, the configuration last: Ray finds a folder by that."""
    wanted = {f"{name}@{digest[:SHORT]}": data / "artefacts" / digest for name, digest in published()}
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    there = {entry["Key"].removeprefix(f"{prefix}/") for page in pages for entry in page.get("Contents", ())}
    for folder, artefact in wanted.items():
        if f"{folder}/{FILES[0]}" not in there:
            files = checked(artefact)
            for name in reversed(FILES):
                s3.put_object(Bucket=bucket, Key=f"{prefix}/{folder}/{name}", Body=files[name])
            print("exported", folder)
    for key in sorted(there) if prune else ():
        if key.partition("/")[0] not in wanted:
            s3.delete_object(Bucket=bucket, Key=f"{prefix}/{key}")
            print("removed", key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("bucket")
    parser.add_argument("prefix")
    parser.add_argument("--prune", action="store_true")
    given = parser.parse_args()
    export(boto3.client("s3"), given.data, given.bucket, given.prefix.strip("/"), prune=given.prune)
