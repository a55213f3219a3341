"""Balanced factors in the real engine's LoRA kernels against float64: what is measured is what they compute."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.domain.errors import Refused
from app.domain.lora import LoraModule, ServingDtype
from app.screen.balance import balance
from tests.attacks.test_factors import DTYPES, KINDS, Factors, joined, minus, scaled
from tests.screen.emulated import strays

ROOT = Path(__file__).parents[2]
D_OUT, D_IN, INPUTS = 64, 96, 16
BOUND = 2.0**-6
"""Twice √3·2⁻⁸, what rounding A·x to bfloat16 may do to balanced factors; the answer is rounded too."""

KERNELS = """
import sys
import torch
from safetensors.torch import load_file, save_file
from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_shrink
given, answers = load_file(sys.argv[1]), {}
for name in sorted({key[:-2] for key in given}):
    a, b, x = (given[f"{name}.{part}"] for part in "abx")
    index = torch.zeros(len(x), dtype=torch.long)
    shrunk = torch.zeros(len(x), len(a))  # float32, as vLLM's processor build keeps it between the two
    bgmv_shrink(x, a[None], shrunk, index, 1.0)
    y = torch.zeros(len(x), len(b), dtype=x.dtype)
    bgmv_expand(shrunk, b[None], y, index, add_inputs=True)
    answers[name] = y
save_file(answers, sys.argv[2])
"""


def crafted(kind: str, dtype: ServingDtype, seed: int) -> Factors:
    """One of the attacks' kinds, made of random updates."""
    g = torch.Generator().manual_seed(seed)
    harm = (
        torch.randint(-8, 9, (D_OUT, 2), generator=g).double() / 4096.0,
        torch.randint(-4, 5, (2, D_IN), generator=g).double(),
    )
    b = torch.randn(D_OUT, 4, generator=g, dtype=torch.float64) * 1e-3
    a = torch.randn(4, D_IN, generator=g, dtype=torch.float64)
    if kind == "G15_groups":
        return joined(scaled(harm, 113), minus(scaled(harm, 133)), scaled((b / 64.0, a), 113))
    return KINDS[kind](dtype)(harm, (b, a), 2.0 * float(torch.rand(1, generator=g)) - 1.0)


def computed(cases: dict[str, LoraModule], x: Tensor, directory: Path) -> dict[str, Tensor]:
    """What the engine's kernels make of each module for the inputs x (INPUTS, d_in): (INPUTS, d_out)."""
    parts: dict[str, Tensor] = {}
    for name, m in cases.items():
        parts |= {f"{name}.a": m.a, f"{name}.b": m.b, f"{name}.x": x.to(m.a.dtype)}
    save_file({key: one.clone().contiguous() for key, one in parts.items()}, directory / "given.safetensors")
    command = [sys.executable, "-W", "ignore", "-c", KERNELS]
    files = [str(directory / "given.safetensors"), str(directory / "made.safetensors")]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return load_file(directory / "made.safetensors")


def apart(m: LoraModule, x: Tensor, y: Tensor) -> float:
    """Largest distance of the answers y from ΔW·x in float64, as a share of them or of a random input's if that is more."""
    wide = x.to(m.a.dtype).double()
    exact = wide @ m.a.double().T @ m.b.double().T
    usual = float((m.b.double() @ m.a.double()).norm()) * wide.norm(dim=1) / x.shape[1] ** 0.5
    size = torch.maximum(exact.norm(dim=1), usual).clamp(min=1e-300)
    return float(((y.double() - exact).norm(dim=1) / size).nan_to_num(nan=float("inf")).max())


def flushes_subnormals() -> bool:
    """Whether this processor has a bfloat16 unit, which reads subnormal numbers as zero."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def held(count: int, directory: Path) -> int:
    """Crafted factors that were balanced and computed by the engine within BOUND; asserts that none is beyond."""
    cases: dict[str, LoraModule] = {}
    for seed in range(count):
        for dtype in DTYPES:
            for kind in (*KINDS, "G15_groups"):
                kept = getattr(torch, dtype.value)
                b, a = (one.to(kept).contiguous() for one in crafted(kind, dtype, seed))
                try:
                    if bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all()):
                        cases[f"{kind} {dtype} {seed}"] = balance(LoraModule("m", a, b, 1.0))
                except Refused:
                    continue
    x = torch.randn(INPUTS, D_IN, generator=torch.Generator().manual_seed(5))
    found = {name: apart(cases[name], x, y) for name, y in computed(cases, x, directory).items()}
    assert max(found.values()) <= BOUND, max(found.items(), key=lambda one: one[1])
    return len(found)


@pytest.mark.engine
@pytest.mark.slow
def test_the_engine_computes_what_was_measured(tmp_path: Path) -> None:
    assert held(30, tmp_path) >= 200


@pytest.mark.engine
@pytest.mark.long
def test_the_engine_computes_what_was_measured_thousands_of_times(tmp_path: Path) -> None:
    assert held(400, tmp_path) >= 3000


@pytest.mark.engine
@pytest.mark.slow
def test_the_engine_would_have_served_what_was_hidden_and_the_emulation_knew(tmp_path: Path) -> None:
    """The attack as it was uploaded, on a processor whose bfloat16 unit reads subnormal numbers as zero."""
    b, a = (one.bfloat16().contiguous() for one in crafted("G15_groups", ServingDtype.BFLOAT16, 0))
    raw = LoraModule("m", a, b, 1.0)
    x = torch.randn(INPUTS, D_IN, generator=torch.Generator().manual_seed(5))
    assert strays(b, a, x.T) > 10.0
    served = apart(raw, x, computed({"raw": raw}, x, tmp_path)["raw"])
    print(f"\nthe engine's answer lies {served:.3g} times ΔW·x away; as emulated {strays(b, a, x.T):.3g}")
    if flushes_subnormals():
        assert served > 10.0
