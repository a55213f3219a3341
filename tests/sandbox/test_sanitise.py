"""validate → screen → prune as one, apart from where it runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.digest import digest_of
from app.domain.lora import Received, ServingDtype, TargetModel
from app.domain.policy import Policy
from app.sandbox import sanitise as module
from app.sandbox.sanitise import Measure, sanitise
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits
from tests.support.adapters import Upload
from tests.support.references import make_reference

THREADS = 2


class Nobody:
    """Steps that nobody hears of."""

    def took(self, *_: object) -> None: ...

    def validated(self) -> None: ...

    def screened(self, _: object) -> None: ...


def test_no_step_of_it_waits_at_openmps_barriers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reference = open_reference(make_reference(tmp_path), None)
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, 16)
    measure = Measure(target, ValidateLimits(), reference, Policy(tau=100.0, top_k=4, max_update_ratio=1e9), 60.0)
    sent = Upload.valid(target)
    threads: dict[str, int] = {}

    def watched(name: str) -> None:
        real = getattr(module, name)

        def watch(*given: Any) -> Any:
            threads[name] = torch.get_num_threads()
            return real(*given)

        monkeypatch.setattr(module, name, watch)

    steps = ("validate", "cut", "canonicalise")
    for name in steps:
        watched(name)
    received = Received(digest_of(sent.config_bytes), digest_of(sent.weights_bytes), 1, 1)
    (tmp_path / "weights").write_bytes(sent.weights_bytes)
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with (tmp_path / "weights").open("rb") as weights:
            assert sanitise(measure, sent.config_bytes, weights, received, Nobody()) is not None
        assert threads == dict.fromkeys(steps, 1)
        assert torch.get_num_threads() == THREADS  # as it was for everybody else
    finally:
        torch.set_num_threads(before)
