"""Build a reference of generated full-size layers in a process of its own; the operating system says what it took.

    python -m tests.screen.full_size DIR [LAYERS]

writes a base and an aligned checkpoint of LAYERS (default 2) decoder layers of Llama-2-7B's shapes under DIR (bfloat16,
0.8 GB a layer, the aligned one cut into other files), builds their reference there and prints one JSON line.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from app.domain.lora import Shape

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
LLAMA_2_7B: Mapping[str, Shape] = {
    **{f"self_attn.{kind}_proj": Shape(4096, 4096) for kind in "qkvo"},
    "mlp.gate_proj": Shape(11008, 4096),
    "mlp.up_proj": Shape(11008, 4096),
    "mlp.down_proj": Shape(4096, 11008),
}

CHILD = """
import json, sys, time
from pathlib import Path
from app.screen.reference.build import BuildOptions, build_reference
def peak():  # VmHWM: of this address space alone; ru_maxrss would start from the parent's
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before, start = peak(), time.monotonic()
digest = build_reference(sys.argv[1], sys.argv[2], Path(sys.argv[3]), BuildOptions(top_k=16))
print(json.dumps({"digest": str(digest), "before": before, "peak": peak(), "seconds": time.monotonic() - start}))
"""


def build_in_a_child(base: Path, aligned: Path, out: Path) -> dict[str, Any]:
    """Digest, seconds, and the peak of resident memory in bytes (`before`: with the libraries loaded and nothing done)."""
    command = [sys.executable, "-c", CHILD, str(base), str(aligned), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def pairs(shapes: Mapping[str, Shape], layers: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(tensor name, base, aligned) one at a time, bfloat16."""
    g = torch.Generator().manual_seed(0)
    for i in range(layers):
        for kind, shape in shapes.items():
            base = (torch.randn(shape.d_out, shape.d_in, generator=g) * 0.02).bfloat16()
            change = torch.randn(shape.d_out, 8, generator=g) @ torch.randn(8, shape.d_in, generator=g)
            yield f"model.layers.{i}.{kind}.weight", base, (base.float() + 2e-3 * change).bfloat16()


def write_pair(directory: Path, shapes: Mapping[str, Shape] = LLAMA_2_7B, layers: int = 2) -> tuple[Path, Path]:
    """Base in one file a tensor, aligned in one file a layer."""
    base_dir, aligned_dir = directory / "base", directory / "aligned"
    base_dir.mkdir(parents=True)
    aligned_dir.mkdir()
    layer: dict[str, torch.Tensor] = {}
    for at, (name, base, aligned) in enumerate(pairs(shapes, layers)):
        save_file({name: base}, base_dir / f"{at:05d}.safetensors")
        layer[name] = aligned
        if (at + 1) % len(shapes) == 0:
            save_file(layer, aligned_dir / f"{at:05d}.safetensors")
            layer = {}
    return base_dir, aligned_dir


def main() -> None:
    """Command line."""
    where, layers = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2
    start = time.monotonic()
    base, aligned = write_pair(where, layers=layers)
    found = build_in_a_child(base, aligned, where / "reference")
    largest = max(shape.d_out * shape.d_in * 2 for shape in LLAMA_2_7B.values())
    bound = 2 * largest + (1 << 30)
    told = {"peak_mib": found["peak"] // MIB, "bound_mib": bound // MIB, "generated_s": time.monotonic() - start}
    sys.stdout.write(json.dumps(found | told) + "\n")


if __name__ == "__main__":
    main()
