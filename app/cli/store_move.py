"""`python -m app store move`: move a single machine's store to a store that several gateways share."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from app.store.uploads import KeptUploads

out = Console()


def move_command(
    data: Annotated[Path, typer.Option(envvar="GATEWAY_DATA", help="The gateway's data directory")],
    to: Annotated[str | None, typer.Option(help="An empty PostgreSQL database, postgresql://user@host/name")] = None,
    artefacts_to: Annotated[
        str | None, typer.Option(help="Object storage for the artefacts, s3://bucket/prefix")
    ] = None,
    originals_to: Annotated[
        Path | None, typer.Option(help="Data directory of the one gateway that is to have the kept uploads")
    ] = None,
    artefacts: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_ARTEFACTS", help="Their directory, if not in the data directory")
    ] = None,
    wait: Annotated[float, typer.Option(help="Longest wait for PostgreSQL, seconds")] = 0.0,
) -> None:
    """Copy SQLite's catalogue to PostgreSQL, artefacts to object storage, kept uploads to another gateway's data directory.

    Refused while a gateway uses them. The source is not changed. After an interruption, run it again. Start no gateway
    on the old catalogue afterwards. Kept uploads (GATEWAY_KEEP_ORIGINALS) are never shared, even if everything else is:
    only the gateway that has them in its data directory can screen them again, the others answer `original_not_kept`.
    """
    from app.store.artefacts.local import BlobStore
    from app.store.artefacts.s3 import RemoteBlobs
    from app.store.artefacts.s3_client import Objects
    from app.store.catalogue.database import sqlite_url
    from app.store.migrate_store import database_file, move_artefacts, move_catalogue, needed_of
    from app.store.open import ARTEFACTS, owner_of
    from app.store.uploads import ORIGINALS, KeptUploads

    if to is None and artefacts_to is None and originals_to is None:
        raise typer.BadParameter("say where to: --to postgresql://…, --artefacts-to s3://…, --originals-to DIR")
    source, root = sqlite_url(data / "catalogue.sqlite"), artefacts or data / ARTEFACTS
    database_file(data, source)
    with ExitStack() as resources:  # holds the directory's lock, which excludes a running gateway
        if artefacts_to is None:
            resources.enter_context(BlobStore(root))
        else:
            owner = owner_of(data, to or source)
            blobs = resources.enter_context(RemoteBlobs(root, Objects(artefacts_to), owner))
            sent, left_out = move_artefacts(blobs, needed_of(source), lambda one: out.print(f"artefact {one.short}"))
            out.print(f"{sent} artefacts in {artefacts_to}, read back and found whole", soft_wrap=True, highlight=False)
            if left_out:
                out.print(f"{left_out} damaged artefacts that no version needs were left out", highlight=False)
        _copy_originals(source, KeptUploads(data / ORIGINALS, keep=False), originals_to)
        if to is not None:
            moved = move_catalogue(source, to, wait)
            counted = ", ".join(f"{count} {table.replace('_', ' ')}" for table, count in moved.items())
            out.print(f"{counted}: copied, read back and found equal", soft_wrap=True, highlight=False)
    names = (("GATEWAY_CATALOGUE_URL", to), ("GATEWAY_STORE_URL", artefacts_to), ("GATEWAY_DATA", originals_to))
    out.print("Start gateways with", *(f"{name}=…" for name, value in names if value), highlight=False)


def _copy_originals(source: str, kept: "KeptUploads", to: Path | None) -> None:
    """Copy the kept uploads, or print their location."""
    from app.store.migrate_store import move_originals, uploads_of
    from app.store.uploads import ORIGINALS, KeptUploads

    if to is None:
        if count := len(kept.digests()):
            why = "one gateway's own, and only one that has them can screen them again (--originals-to)"
            out.print(f"{count} files of kept uploads stay in {kept.root}: {why}", soft_wrap=True, highlight=False)
        return
    copied, damaged = move_originals(kept, KeptUploads(to / ORIGINALS, keep=True), uploads_of(source))
    out.print(
        f"{copied} files of kept uploads in {to / ORIGINALS}, read back and found whole; they are that gateway's alone",
        soft_wrap=True,
        highlight=False,
    )
    for digest in damaged:
        out.print(f"kept upload {digest.short} is damaged and was left out", soft_wrap=True, highlight=False)
