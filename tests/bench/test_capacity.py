"""The capacity plan: its page is its output, its simulation agrees with theory, its constants with what they stand for."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.bench.capacity import plan as capacity
from app.bench.capacity.costs import KEPT, Costs, read_costs
from app.bench.capacity.plan import Assumptions, adapter_bytes, hit_rate, limits, run, zipf
from app.cli.bench import bench
from app.observe.adapter_label import MAX_ADAPTERS

ROOT = Path(__file__).resolve().parents[2]
COSTS = Costs(screen_cpu_s=0.01, load_s=0.1, hash_bytes_per_s=1e9, route_s=1e-5, machine="m", made="so")


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(bench, ["capacity"])
    assert printed.exit_code == 0, printed.output
    assert (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8") == printed.output


def che(adapters: int, exponent: float, slots: int) -> float:
    """Hit rate of an LRU by Che's approximation (H. Che, Y. Tung, Z. Wang, IEEE JSAC 20 (2002) 1305)."""
    share = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
    share /= share.sum()
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if (1 - np.exp(-share * middle)).sum() > slots else (middle, high)
    return float((share * (1 - np.exp(-share * low))).sum())


@pytest.mark.parametrize(("adapters", "exponent", "slots"), [(100, 1.0, 8), (10_000, 0.8, 256), (10_000, 1.2, 64)])
def test_the_simulation_agrees_with_theory(adapters: int, exponent: float, slots: int) -> None:
    names = zipf(adapters, exponent, 100_000, np.random.default_rng(1))
    found = hit_rate(names, np.zeros_like(names), slots)
    assert found == pytest.approx(che(adapters, exponent, slots), abs=0.015)


def test_affinity_is_worth_what_it_promises() -> None:
    plan = run(Assumptions(requests=40_000), COSTS, (10_000,)).plans[0]
    for one in plan.hits:
        assert one.host_affine > one.host_spread
        assert one.gpu_affine > one.gpu_spread


def test_bytes_follow_from_shapes() -> None:
    assert adapter_bytes(16) == 32 * 2 * 16 * (4096 + 4096) * 2
    assert adapter_bytes(16, ("down_proj",)) == 32 * 16 * (4096 + 11008) * 2


def test_a_cost_twice_as_high_breaks_at_half() -> None:
    def refill(load_s: float) -> int:
        slow = Costs(**{**{name: getattr(COSTS, name) for name in COSTS.__slots__}, "load_s": load_s})
        return next(one.adapters for one in limits(Assumptions(), slow, 1) if one.what.startswith("filling"))

    assert refill(0.1) == 2 * refill(0.2) == 3000


def test_what_breaks_is_told_in_order() -> None:
    found = [one.adapters for one in limits(Assumptions(), read_costs(KEPT), adapter_bytes(16))]
    assert found == sorted(found)
    assert found[0] == MAX_ADAPTERS == capacity._MAX_SERIES


def test_the_size_of_an_entry_is_vllms() -> None:
    protocol = pytest.importorskip("vllm.entrypoints.serve.engine.protocol")
    card = protocol.ModelCard(
        id="adapter-number-1234567@0123456789ab",
        root="/var/lib/gateway/artefacts/" + "a" * 64,
        parent="meta-llama/Llama-2-7b-chat-hf",
        permission=[protocol.ModelPermission()],
    )
    assert len(card.model_dump_json()) == pytest.approx(capacity.CARD_BYTES, abs=20)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"load_s": 1}))
    return path


def test_a_file_that_holds_no_costs_is_refused(broken: Path) -> None:
    with pytest.raises(ValueError, match=r"costs\.json"):
        read_costs(broken)
