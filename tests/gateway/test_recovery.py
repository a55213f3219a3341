"""Recovery: work that a stopped gateway left half done ends one way or the other, and nothing is thrown away."""

import json
import logging
from dataclasses import replace

import pytest

from app.domain.errors import RESERVED_NAME, SCREENING_FAILED, STORE_FAILED, Refused, Unavailable
from app.domain.lora import ServingDtype, TargetModel
from app.domain.version_state import State
from app.gateway.recovery import recover, take_over
from app.observe.log import FIELDS, LOGGER
from tests.gateway.conftest import MakeUseCases, UseCases
from tests.store.making import NAME, artefact, begun, received

TARGET = TargetModel("served", {}, ServingDtype.FLOAT32, 16)


def start(use_cases: UseCases) -> None:
    recover(use_cases.components, use_cases.follower, use_cases.garbage)


async def test_interrupted_work_fails_and_stored_versions_wait_for_the_engine(
    make_use_cases: MakeUseCases, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", True)
    caplog.set_level(logging.INFO, LOGGER)
    use_cases = make_use_cases(target=TARGET)
    waiting = use_cases.store(1)
    begun(use_cases.components.catalogue, NAME, received(2))
    start(use_cases)
    interrupted = use_cases.components.catalogue.version("style", 2)
    assert (interrupted.state, interrupted.error_code) == (State.FAILED, SCREENING_FAILED.name)
    assert use_cases.components.desired.waiting() == {waiting.engine_name}
    (counted,) = [getattr(record, FIELDS) for record in caplog.records if record.message == "recovered"]
    assert {name: counted[name] for name in ("interrupted", "to_load", "emptied")} == {
        "interrupted": 1,
        "to_load": 1,
        "emptied": 0,
    }


async def test_artefacts_of_uploads_without_a_catalogue_are_not_thrown_away(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(target=TARGET)
    plain = artefact(1)
    manifest = json.loads(plain.manifest) | {"received": {"weights_bytes": 8}}
    made = replace(plain, manifest=json.dumps(manifest).encode())
    use_cases.components.blobs.put(made)
    with pytest.raises(Unavailable) as refused:
        start(use_cases)
    assert refused.value.code is STORE_FAILED
    assert use_cases.components.blobs.digests() == {made.digest}


async def test_an_adapter_with_the_served_models_name_stops_the_start(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(target=TargetModel("style", {}, ServingDtype.FLOAT32, 16))
    use_cases.store(1)
    with pytest.raises(Refused) as refused:
        start(use_cases)
    assert refused.value.code is RESERVED_NAME


async def test_a_dead_gateways_work_is_failed_and_its_artefacts_looked_for(use_cases: UseCases) -> None:
    begun(use_cases.components.catalogue, NAME, received(1))
    before = use_cases.garbage._occasions
    await take_over(use_cases.components, use_cases.garbage)
    assert use_cases.components.catalogue.version("style", 1).state is State.FAILED
    assert use_cases.garbage._occasions == before + 1
