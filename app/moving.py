"""`python -m app store move`: a store of one machine's own becomes one that several gateways share."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console()


def move_command(
    data: Annotated[Path, typer.Option(envvar="GATEWAY_DATA", help="The gateway's data directory")],
    to: Annotated[str | None, typer.Option(help="An empty PostgreSQL database, postgresql://user@host/name")] = None,
    artefacts_to: Annotated[
        str | None, typer.Option(help="Object storage for the artefacts, s3://bucket/prefix")
    ] = None,
    artefacts: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_ARTEFACTS", help="Their directory, if not in the data directory")
    ] = None,
    wait: Annotated[float, typer.Option(help="Longest wait for PostgreSQL, seconds")] = 0.0,
) -> None:
    """Copy SQLite's catalogue to PostgreSQL, and artefacts to object storage; refused while a gateway runs on them.

    Nothing is taken away here. Run it again where it was broken off. Start no gateway on the old catalogue afterwards.
    """
    from app.store.blobs import BlobStore
    from app.store.database import sqlite_url
    from app.store.moving import database_file, move_artefacts, move_catalogue, needed_of
    from app.store.objects import Objects
    from app.store.opening import ARTEFACTS, owner_of
    from app.store.remote import RemoteBlobs

    if to is None and artefacts_to is None:
        raise typer.BadParameter("say where to: --to postgresql://…, --artefacts-to s3://…, or both")
    source, root = sqlite_url(data / "catalogue.sqlite"), artefacts or data / ARTEFACTS
    database_file(data, source)
    with ExitStack() as doors:  # the lock of the directory: a gateway on it is refused, and refuses us
        if artefacts_to is None:
            doors.enter_context(BlobStore(root))
        else:
            owner = owner_of(data, to or source)
            blobs = doors.enter_context(RemoteBlobs(root, Objects(artefacts_to), owner))
            sent, left_out = move_artefacts(blobs, needed_of(source), lambda one: out.print(f"artefact {one.short}"))
            out.print(f"{sent} artefacts in {artefacts_to}, read back and found whole", soft_wrap=True, highlight=False)
            if left_out:
                out.print(f"{left_out} damaged artefacts that no version needs were left out", highlight=False)
        if to is not None:
            moved = move_catalogue(source, to, wait)
            counted = ", ".join(f"{count} {table}" for table, count in moved.items())
            out.print(f"{counted}: copied, read back and found equal", soft_wrap=True, highlight=False)
    names = (("GATEWAY_CATALOGUE_URL", to), ("GATEWAY_STORE_URL", artefacts_to))
    out.print("Start gateways with", *(f"{name}=…" for name, value in names if value), highlight=False)
