"""`python -m app store sign`: sign the artefacts that versions name with one key, if an audit finds the store intact."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from app.cli.client import fail
from app.cli.store_audit import out, show, status_of


def sign_command(
    data: Annotated[Path, typer.Option(envvar="GATEWAY_DATA", help="The gateway's data directory")],
    key: Annotated[Path, typer.Option(envvar="GATEWAY_SIGNING_KEY", help="Private key in PEM")],
    catalogue_url: Annotated[
        str | None, typer.Option(envvar="GATEWAY_CATALOGUE_URL", help="If not SQLite there")
    ] = None,
    artefacts: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_ARTEFACTS", help="Their directory, if not there")
    ] = None,
    store_url: Annotated[str | None, typer.Option(envvar="GATEWAY_STORE_URL", help="If in object storage")] = None,
) -> None:
    """Audit the store, then sign every artefact that a version names with this key, in place of any other signature.

    For artefacts from before GATEWAY_SIGNING_KEY was set, and after a key was lost. Refused while a gateway uses the store,
    or if the audit finds a broken invariant (exit status 1). An audit sees whether store and catalogue agree; `store
    audit --reference DIR` measures everything again, for when somebody may have written to both. From object storage the
    artefacts are copied to the data directory first. After an interruption, run it again.
    """
    from app.store.artefacts.local import BlobStore
    from app.store.artefacts.s3 import RemoteBlobs
    from app.store.artefacts.signatures import Signatures
    from app.store.audit.audit import audit
    from app.store.envelope import Signer
    from app.store.migrate_store import needed_of
    from app.store.open import catalogue_at, open_blobs

    try:
        signatures = Signatures(Signer.read(key))
    except ValueError as error:
        fail(str(error))
    url = catalogue_at(data, catalogue_url)
    _refuse_beside_gateways(url)
    with ExitStack() as resources:  # holds the directory's lock, which excludes a running gateway
        if artefacts is None:
            blobs = resources.enter_context(open_blobs(data, store_url, catalogue_url, signatures=signatures))
        else:
            blobs = resources.enter_context(BlobStore(artefacts, signatures=signatures))
        digests = sorted(needed_of(url))
        if isinstance(blobs, RemoteBlobs):
            for digest in digests:
                blobs.copy_unsigned(digest)
        found = audit(data, url, artefacts=artefacts, store_url=store_url)
        if status_of(found):
            show(found)
            out.print("nothing was signed", highlight=False)
            sys.exit(1)
        for digest in digests:
            blobs.sign(digest)
            out.print(f"artefact {digest.short}: signed", highlight=False)
    out.print(f"{len(digests)} artefacts are signed with this key", highlight=False)


def _refuse_beside_gateways(url: str) -> None:
    """Print an error and exit if gateways work on a shared catalogue: they write manifests, too."""
    from app.store.catalogue.database import is_shared
    from app.store.cluster.peers import Peers

    if not is_shared(url):
        return
    peers = Peers(url)
    try:
        others = peers.others()
    finally:
        peers.leave()
    if others:
        fail(f"{len(others)} gateways use this catalogue: stop them first")
