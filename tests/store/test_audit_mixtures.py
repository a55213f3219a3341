"""The audit takes an artefact that names all experts of a layer, and none that names more than that."""

import json
from dataclasses import replace
from pathlib import Path

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.domain.policy import Action
from app.store.audit import rules
from app.store.audit.snapshot import read_blob
from tests.adapters.test_experts import NOTHING, measured
from tests.support.mixtures import reference_of, save_adapter


def test_experts_that_were_cut_may_stand_in_the_artefact_and_nothing_else(tmp_path: Path) -> None:
    reference, model = reference_of("qwen3_moe", tmp_path)
    save_adapter(model, tmp_path / "adapter")
    artefact, heard = measured(
        tmp_path / "adapter", reference, replace(NOTHING, tau=0.0, action=Action.PRUNE, max_pruned_share=1.0)
    )
    reference.close()
    assert artefact is not None
    assert heard.verdict is not None
    assert heard.verdict.pruned
    folder = tmp_path / artefact.digest.hex
    folder.mkdir()
    for name, data in ((WEIGHTS_FILE, artefact.weights), (MANIFEST_FILE, artefact.manifest)):
        (folder / name).write_bytes(data)
    fields = json.loads(artefact.config)
    modules = fields["target_modules"]
    served = list(heard.verdict.served)

    def found(named: list[str]) -> set[str]:
        config = artefact.config if named is modules else json.dumps({**fields, "target_modules": named}).encode()
        (folder / CONFIG_FILE).write_bytes(config)
        seen = replace(read_blob(folder), mode=0o700)
        whole = replace(seen, manifest={**(seen.manifest or {}), "files": {
            name: file.sha256 for name, file in seen.files.items() if name != MANIFEST_FILE
        }})  # fmt: skip
        return {one.invariant for one in rules.blob(whole)} & {"I1", "I7"}

    assert not found(modules)
    assert "I7" in found(sorted([*modules, "model.layers.0.self_attn.q_proj"]))
    assert "I7" in found(sorted([*modules, "model.layers.7.mlp.experts.0.up_proj"]))
    assert "I7" in found([name for name in modules if name != served[0]])
    assert "I1" in found(served)
