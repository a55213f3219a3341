"""Follower of the catalogue: one call puts routing table, engine, gauges and garbage collector in step."""

from tests.gateway.conftest import UseCases


async def test_one_refresh_puts_everything_in_step(use_cases: UseCases) -> None:
    row = use_cases.store(1)
    assert row.artefact is not None
    use_cases.components.catalogue.activate("style", 1)
    await use_cases.follower.refresh()
    c = use_cases.components
    assert c.desired.adapters() == {row.engine_name: c.blobs.path(row.artefact)}
    assert c.routing_table.snapshot.targets.keys() == {"served", "style", "style@1"}
    assert use_cases.engine.pokes == 1
    shown = c.metrics.exposition().decode()
    assert 'gateway_adapter_modules{adapter="style",decision="prune"} 1.0' in shown


async def test_what_is_no_longer_desired_may_be_garbage(use_cases: UseCases) -> None:
    await use_cases.publish(1)
    before = use_cases.garbage._occasions
    await use_cases.follower.refresh()
    assert use_cases.garbage._occasions == before
    use_cases.components.catalogue.delete("style")
    await use_cases.follower.refresh()
    assert use_cases.garbage._occasions == before + 1


async def test_the_state_in_force_is_replaced_never_changed(use_cases: UseCases) -> None:
    await use_cases.publish(1)
    before = use_cases.components.desired.state
    adapters = dict(before.adapters)
    await use_cases.publish(2)
    assert use_cases.components.desired.state is not before
    assert before.adapters == adapters


async def test_a_recalled_version_is_desired_for_as_long_as_it_is_recalled(use_cases: UseCases) -> None:
    rows = [await use_cases.publish(seed) for seed in range(8)]
    oldest = rows[0]
    desired = use_cases.components.desired
    assert oldest.engine_name not in desired.adapters()
    async with use_cases.follower.recalled(oldest), use_cases.follower.recalled(oldest):
        assert oldest.engine_name in desired.waiting()
    assert oldest.engine_name not in desired.adapters()
