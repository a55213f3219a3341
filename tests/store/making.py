"""Small artefacts, verdicts and uploads, made from a seed."""

import hashlib
import json
from collections.abc import Sequence

from app.domain.api_keys import NOBODY, Uploader
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE, Artefact, content_digest
from app.domain.digest import Digest, digest_of
from app.domain.lora import Received
from app.domain.names import AdapterName
from app.domain.policy import Policy
from app.domain.verdict import METRIC_VERSION, Decision, ModuleVerdict, Outcome, Reason, Verdict
from app.store.catalogue.beginning import Ended, Same
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.naming import claim_of
from app.store.catalogue.tables import VersionRow

NAME = AdapterName("style")


def noise(seed: int | str, size: int) -> bytes:
    """`size` bytes that look random and are the same for the same seed."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def artefact(seed: int | str = 0, size: int = 2000) -> Artefact:
    """An artefact with `size` bytes of weights."""
    config, weights = b'{"r": 4}\n', noise(seed, size)
    digest = content_digest(config, weights)
    files = {CONFIG_FILE: digest_of(config).hex, WEIGHTS_FILE: digest_of(weights).hex}
    manifest = json.dumps({"format": 1, "digest": digest.hex, "files": files, "seed": seed}).encode()
    return Artefact(digest, config, weights, manifest)


def received(seed: int | str = 0) -> Received:
    """What arrived, in a version that differs with the seed."""
    return Received(digest_of(b"config"), digest_of(noise(seed, 8)), 6, 8)


def verdict(decisions: Sequence[Decision] = (Decision.KEEP, Decision.PRUNE), seed: int | str = 0) -> Verdict:
    """A verdict with one module per decision."""
    modules = tuple(
        ModuleVerdict(f"m.{i}", 4, 1.0, {}, None, 1.0, 1.0, 1.0, decision, Reason.BELOW_TAU)
        for i, decision in enumerate(decisions)
    )
    kept = Decision.KEEP in decisions
    pruned = Decision.PRUNE in decisions
    outcome = Outcome.EMPTIED if not kept else Outcome.PRUNED if pruned else Outcome.CLEAN
    return Verdict(
        digest_of(f"verdict {seed}".encode()), METRIC_VERSION, Policy(), digest_of(b"r"), outcome, "", modules
    )


def begun(
    catalogue: Catalogue,
    name: AdapterName,
    received: Received,
    parameters: str = "",
    *,
    after: int | None = None,
    by: Uploader = NOBODY,
) -> VersionRow:
    """A version with a number of its own, also for bytes that came before."""
    with catalogue._database.writing() as connection:
        return catalogue._begin(connection, name, received, parameters, after, claim_of(connection, name, by))


def begin_again(
    catalogue: Catalogue,
    name: AdapterName,
    number: int,
    *,
    intact: bool = False,
    after: int | None = None,
    by: Uploader = NOBODY,
) -> tuple[VersionRow, bool]:
    """Try a version that ended once more: the version there is now, and whether this call began it."""
    row = catalogue.version(name, number)
    made = catalogue.begin(row.name, row.received, row.parameters, after=after, by=by, ended=Ended(number, intact))
    return made.row, not isinstance(made, Same)


def stored(
    catalogue: Catalogue, seed: int | str = 0, name: AdapterName = NAME, *, digest: Digest | None = None
) -> VersionRow:
    """One upload taken as far as `stored` (the artefact's digest is the seed's unless given)."""
    row = begun(catalogue, name, received(seed))
    catalogue.record_validated(name, row.number)
    catalogue.record_screened(name, row.number, verdict(seed=seed), f'{{"seed": "{seed}"}}')
    return catalogue.record_stored(name, row.number, digest or artefact(seed).digest)


def published(catalogue: Catalogue, seed: int | str = 0, name: AdapterName = NAME) -> VersionRow:
    """One upload taken all the way."""
    return catalogue.activate(name, stored(catalogue, seed, name).number)
