"""Use cases over a real catalogue and a real store; the engine is a table of names."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from app.concurrency.pools import Pools
from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.desired_state import StateInForce
from app.gateway.garbage import GarbageCollector
from app.gateway.policy_recheck import PolicyRecheck
from app.gateway.publishing import Publishing
from app.gateway.rules_in_force import RulesInForce
from app.observe.metrics import Metrics
from app.observe.upload_progress import Progress
from app.serve.routing_table import RoutingTable
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.catalogue.tables import VersionRow
from app.store.uploads import KeptUploads
from tests.store.making import artefact, stored


@dataclass
class Engine:
    """Stands in for the reconciler: holds what it is asked for, unless it is away or refuses."""

    loaded: set[str] = field(default_factory=set)
    refuses: dict[str, Unavailable] = field(default_factory=dict)
    away: bool = False
    pokes: int = 0
    forgiven: list[str] = field(default_factory=list)

    @property
    def known(self) -> bool:
        return not self.away

    @property
    def failures(self) -> dict[str, str]:
        return {name: error.message for name, error in self.refuses.items()}

    def is_loaded(self, name: str) -> bool:
        return not self.away and name in self.loaded

    def may_read(self) -> frozenset[str]:
        return frozenset(self.loaded)

    def poke(self) -> None:
        self.pokes += 1

    def forget_failure(self, name: str) -> None:
        self.forgiven.append(name)

    async def ensure(self, name: str) -> None:
        if self.away:
            raise Unavailable(ENGINE_UNAVAILABLE, "away")
        if name in self.refuses:
            raise self.refuses[name]
        self.loaded.add(name)


@dataclass
class UseCases:
    """One gateway's use cases. objections: versions that the policy in force does not pass, and why."""

    components: Components
    engine: Engine
    garbage: GarbageCollector
    recheck: PolicyRecheck
    follower: CatalogueFollower
    publishing: Publishing
    objections: dict[tuple[str, int], str]

    def store(self, seed: int) -> VersionRow:
        """A version whose artefact is in the store, not yet followed."""
        self.components.blobs.put(artefact(seed))
        return stored(self.components.catalogue, seed)

    async def publish(self, seed: int) -> VersionRow:
        """A version taken all the way."""
        row = self.store(seed)
        await self.publishing.stored(row)
        return await self.publishing.load(row)

    def under(self, parameters: str) -> "UseCases":
        """The same gateway under another policy: every stored version has to be measured again."""
        return _use_cases(replace(self.components, rules=rules(parameters)), self.engine, self.garbage, self.objections)


def rules(parameters: str = "") -> RulesInForce:
    """Rules of a gateway that does not look at behaviour."""
    return RulesInForce(cast(Any, "the policy"), None, lambda *_: parameters)


def _use_cases(
    components: Components, engine: Engine, garbage: GarbageCollector, objections: dict[tuple[str, int], str]
) -> UseCases:
    recheck = PolicyRecheck(components, lambda row: objections.get(row.key))
    follower = CatalogueFollower(components, recheck, garbage)
    publishing = Publishing(components, follower, garbage)
    return UseCases(components, engine, garbage, recheck, follower, publishing, objections)


MakeUseCases = Callable[..., UseCases]


@pytest.fixture
def make_use_cases(tmp_path: Path) -> Iterator[MakeUseCases]:
    """`make_use_cases(keep_versions=1)`: use cases over one data directory."""
    pools, closers = Pools.for_uploads(2), list[Any]()

    def make(**given: Any) -> UseCases:
        blobs = BlobStore(tmp_path / "artefacts")
        catalogue = Catalogue(sqlite_url(tmp_path / "catalogue.sqlite"))
        closers.extend((blobs, catalogue))
        engine = Engine()
        values: dict[str, Any] = {
            **dict.fromkeys(("target", "reference", "sanitise"), cast(Any, None)),
            "screen_seconds": 60.0,
            "rules": rules(),
            "keep_versions": 5,
            "blobs": blobs,
            "kept_uploads": KeptUploads(tmp_path / "originals", keep=False),
            "catalogue": catalogue,
            "reconciler": cast(Any, engine),
            "desired": StateInForce(),
            "routing_table": RoutingTable("served", loaded=engine.is_loaded),
            "metrics": Metrics(),
            "progress": Progress(),
            "zero": None,
            "pools": pools,
            **given,
        }
        components = Components(**values)
        return _use_cases(components, engine, GarbageCollector(components), {})

    with closing(pools):
        yield make
        for closer in closers:
            closer.close()


@pytest.fixture
def use_cases(make_use_cases: MakeUseCases) -> UseCases:
    """Use cases with the default retention."""
    return make_use_cases()
