"""Builder of references: base + aligned checkpoint → reference directory, one module in memory at a time.

The build happens in `.<name>.building` beside `out`, which has no reference.json until everything else is written and
synced; it is then renamed. So a reference is either complete or absent, and a build that was killed resumes where it
stopped.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from app.domain.digest import Digest, digest_of, digest_of_parts
from app.domain.experts import lacking, layer_path
from app.domain.rungs import DEFAULT_RUNGS, rungs_from, widest
from app.domain.spellings import Spellings
from app.screen.reference.checkpoint import Checkpoint, fail
from app.screen.reference.experts import Part
from app.screen.reference.linears import module_of
from app.screen.reference.manifest import (
    FORMAT,
    MANIFEST,
    FileInfo,
    Manifest,
    ModuleInfo,
    dump,
    module_from,
    module_json,
)
from app.screen.reference.spectrum import Keep, spectrum_of
from app.screen.sides import signs_of_swap

Progress = Callable[[str, int, int], None]
"""Callback (module, done, total), called before each module and once at the end."""

PLAN: Final = "plan.json"
FILE_MODE: Final = 0o444
BLOCK_BYTES: Final = 16 << 20
"""Bytes of a matrix, in float64, processed at a time: a build holds one stored V and a few of these."""


WIDEST: Final = widest(rungs_from(DEFAULT_RUNGS))
"""Strongest correction that a gateway's default settings may ask for: a reference holds that much unless told otherwise."""

MAX_TRIPLES: Final = 512
"""Most singular triples kept of a module unless told otherwise: with them a compact reference of a 7B model has 2.7 GB."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build.

    energy: as many singular triples of V are kept of each module as hold this share (0..1) of ‖V‖²; None: what WIDEST asks
    for, or all of `top_k` if that is given. top_k: at most that many; None: MAX_TRIPLES. outputs: left vectors kept. dtype:
    storage dtype of V (bfloat16 halves the bytes that screening reads; the rounding is recorded). modules: a glob over
    module names, None for all. compact: leave V out; such a reference supports the `input` comparison
    only. experts: measure the experts of a mixture, too.
    """

    top_k: int | None = None
    energy: float | None = None
    outputs: int = WIDEST.outputs
    dtype: torch.dtype = torch.bfloat16
    modules: str | None = None
    compact: bool = False
    experts: bool = True

    def __post_init__(self) -> None:
        if self.keep.top_k < 1 or self.outputs < 0:
            raise ValueError(f"top_k must be 1 or more and outputs 0 or more, not {self.keep.top_k}, {self.outputs}")
        if not 0.0 < self.keep.energy <= 1.0:
            raise ValueError(f"energy must be above 0 and at most 1, not {self.keep.energy}")
        if self.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"V is stored as bfloat16, float16 or float32, not {self.dtype}")

    @property
    def keep(self) -> Keep:
        """Number of singular triples to keep, with the defaults filled in."""
        energy = self.energy if self.energy is not None else WIDEST.energy if self.top_k is None else 1.0
        return Keep(energy, MAX_TRIPLES if self.top_k is None else self.top_k, self.outputs)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both checkpoints. names: modules to measure, as the aligned one names them, each with its name in the base."""

    base: Checkpoint
    aligned: Checkpoint
    names: Mapping[str, str]
    options: BuildOptions


def build_reference(
    base: str | Path,
    aligned: str | Path,
    out: Path,
    options: BuildOptions | None = None,
    progress: Progress = lambda module, done, total: None,
    warn: Callable[[str], None] = lambda sign: None,
) -> Digest:
    """Build the reference of a base and an aligned checkpoint (directories or hub ids) at `out`; return its digest.

    warn: called with each sign that the two were swapped, before any measurement. Raises Unavailable BAD_REFERENCE,
    naming the tensor, if architectures or shapes differ, a value is not finite, or no module differs.
    """
    options = options or BuildOptions()
    if out.exists():
        raise fail(f"{out}: already exists; remove it or choose another directory")
    pair = _open_pair(base, aligned, options)
    for sign in signs_of_swap(pair.base.path, pair.aligned.path):
        warn(sign)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _stage(out.parent / f".{out.name}.building", _plan(pair)) as stage:
            return _build(pair, stage, out, progress)
    except (OSError, SafetensorError) as error:
        raise fail(f"{out}: cannot be written: {error}") from error
    finally:
        pair.base.close()
        pair.aligned.close()


def _open_pair(base: str | Path, aligned: str | Path, options: BuildOptions) -> _Pair:
    """Open both checkpoints, with their modules compared by name and shape."""
    two = Checkpoint(aligned)
    one = Checkpoint(base, like=two)
    names = _matched(one, two)
    glob = options.modules
    if not options.experts:
        names = {name: in_base for name, in_base in names.items() if layer_path(name) is None}
    chosen = {name: names[name] for name in sorted(names) if glob is None or fnmatchcase(name, glob)}
    for name in lacking(chosen, two.modules):  # the engine takes all of a layer's experts or none
        raise fail(f"{two.path}: {glob!r} leaves out {name}; choose all experts of a layer or none")
    if not chosen:
        raise fail(_without_modules(two, glob))
    return _Pair(one, two, chosen, options)


def _without_modules(checkpoint: Checkpoint, glob: str | None) -> str:
    """Return the message for a checkpoint without a module to measure."""
    if glob is not None:
        return f"{checkpoint.path}: no linear module matches {glob!r}"
    if checkpoint.model_class is not None and checkpoint.model_class.transposed:
        return f"{checkpoint.path}: its weights are transposed (Conv1D, as in GPT-2); such modules are not measured"
    if checkpoint.quantised:
        return f"{checkpoint.path}: its weights are quantised; build from the checkpoint of 16- or 32-bit floats"
    return f"{checkpoint.path}: no linear module found"


def _matched(base: Checkpoint, aligned: Checkpoint) -> dict[str, str]:
    """Return the aligned checkpoint's modules, each with its name in the base, which may spell it otherwise.

    Modules of the layers must be the same in both. Others, such as a head for an enlarged vocabulary, are left out if they
    are not.
    """
    ours, theirs = base.modules, aligned.modules
    spellings = Spellings(ours)
    found = {name: spellings.find(name) for name in theirs}
    names = {name: in_base for name, in_base in found.items() if in_base is not None}
    for has, lacks, missing in (
        (aligned, base, found.keys() - names.keys()),
        (base, aligned, ours.keys() - set(names.values())),
    ):
        for name in sorted(missing):
            if module_of(f"{name}.weight") is not None:
                tensor = has.weight(name).tensor
                raise fail(f"{has.where(tensor)} is not in {lacks.path}: not the same architecture")
    if len(set(names.values())) < len(names):
        raise fail(f"{aligned.path}: two names of one module of {base.path}; keep one of them")
    for name, in_base in list(names.items()):
        if ours[in_base] != theirs[name]:
            if module_of(f"{name}.weight") is None:
                del names[name]
                continue
            wanted, given = (f"{s.d_out} × {s.d_in}" for s in (ours[in_base], theirs[name]))
            at, there = base.where(base.weight(in_base).tensor), aligned.where(aligned.weight(name).tensor)
            raise fail(f"{there} is {given}, in the base checkpoint ({at}) it is {wanted}")
    return names


def _plan(pair: _Pair) -> str:
    """Return the parameters that a half-finished build must share with this one to be resumed."""
    o = pair.options
    options = [*astuple(o.keep), str(o.dtype), o.modules, o.compact, o.experts]
    return json.dumps([FORMAT, pair.base.fingerprint(), pair.aligned.fingerprint(), *options])


@contextmanager
def _stage(stage: Path, plan: str) -> Iterator[Path]:
    """Lock the building directory, and empty it unless it holds work of the same plan."""
    stage.mkdir(exist_ok=True)
    fd = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise fail(f"{stage}: another build of this reference is running") from None
        if not (stage / PLAN).is_file() or (stage / PLAN).read_text(encoding="utf-8") != plan:
            for entry in stage.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            _write(stage / PLAN, plan.encode())
        yield stage
    finally:
        os.close(fd)


def _build(pair: _Pair, stage: Path, out: Path, progress: Progress) -> Digest:
    infos: dict[str, ModuleInfo] = {}
    parts: tuple[dict[str, Digest], dict[str, Digest]] = ({}, {})
    for i, (name, in_base) in enumerate(pair.names.items()):
        progress(name, i, len(pair.names))
        info, digests = _resume(stage, name) or _measure(pair, stage, name)
        infos[name] = info
        parts_of = (pair.base.weight(in_base), pair.aligned.weight(name))
        for of, part, digest in zip(parts, parts_of, digests, strict=True):
            if part.expert is None:  # a fused tensor's digest is of all its experts together
                of[part.tensor] = digest
    if all(info.v_norm == 0.0 for info in infos.values()):
        shutil.rmtree(stage)
        raise fail(
            f"{pair.aligned.path}: no module differs from {pair.base.path}; name the unaligned checkpoint as base"
        )
    _digest_rest(pair, parts)
    base, aligned = (digest_of_parts(of.items()) for of in parts)
    kind = str(pair.options.dtype).removeprefix("torch.")
    manifest = Manifest(base, aligned, kind, pair.options.keep.top_k, pair.options.compact, infos, _left_out(pair))
    data = dump(manifest)
    temporary = (path for pattern in ("*.done", "*.new", ".tmp*") for path in stage.glob(pattern))  # .tmp: safetensors'
    for leftover in (*temporary, stage / PLAN):
        leftover.unlink()
    _write(stage / MANIFEST, data)
    (stage / MANIFEST).chmod(FILE_MODE)
    _sync(stage)
    stage.rename(out)
    _sync(out.parent)
    progress("done", len(pair.names), len(pair.names))
    return digest_of(data)


def _left_out(pair: _Pair) -> tuple[str, ...]:
    """Return the aligned weights on which a LoRA is refused: outside `modules`, or not matched by the glob."""
    unmatched = (pair.aligned.weight(name).tensor for name in set(pair.aligned.modules) - set(pair.names))
    return tuple(sorted({*pair.aligned.left_out, *unmatched}))


def _digest_rest(pair: _Pair, parts: tuple[dict[str, Digest], dict[str, Digest]]) -> None:
    """Add digests of the tensors that belong to no module, so that a checkpoint's digest covers all of it."""
    for checkpoint, of in zip((pair.base, pair.aligned), parts, strict=True):
        for tensor in checkpoint.shapes:
            if tensor not in of:
                of[tensor] = checkpoint.digest(tensor)


def _resume(stage: Path, name: str) -> tuple[ModuleInfo, tuple[Digest, Digest]] | None:
    """Return a module's measurements from an earlier, killed run of this build, if its files are intact."""
    try:
        fields = json.loads((stage / f"{name}.done").read_text(encoding="utf-8"))
        info = module_from(fields["info"])
        digests = Digest(fields["base"]), Digest(fields["aligned"])
        intact = all(_hash(stage / f.name) == f.sha256 for f in (info.v, info.triples) if f is not None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (info, digests) if intact else None


def _measure(pair: _Pair, stage: Path, name: str) -> tuple[ModuleInfo, tuple[Digest, Digest]]:
    """Measure one module: V, its statistics, its files, and the record that it is done."""
    v, rounding, digests = _difference(pair, pair.base.weight(pair.names[name]), pair.aligned.weight(name))
    norm = _norm(v)
    info = _zero_info(name, v) if norm == 0.0 else _info(name, v, norm, rounding, pair.options, stage)
    record = {"info": module_json(info), "base": str(digests[0]), "aligned": str(digests[1])}
    _write(stage / f"{name}.done", json.dumps(record).encode())
    return info, digests


def _difference(pair: _Pair, in_base: Part, part: Part) -> tuple[Tensor, float, tuple[Digest, Digest]]:
    """Return V = aligned − base as stored (d_out, d_in), ‖V − V_stored‖_F/‖V‖_F, and the digests of the bytes read.

    Differences are computed in float64 and rounded once to float32, once to the storage dtype.
    """
    shape = part.shape.d_out, part.shape.d_in
    stored = torch.empty(shape, dtype=pair.options.dtype)
    hashes = pair.base.hashing(in_base.tensor), pair.aligned.hashing(part.tensor)
    rows = _rows(shape)
    blocks = pair.base.rows(in_base, rows, hashes[0]), pair.aligned.rows(part, rows, hashes[1])
    lost = whole = 0.0
    for at, (base, aligned) in zip(range(0, shape[0], rows), zip(*blocks, strict=True), strict=True):
        exact = aligned.double() - base.double()
        if not bool(torch.isfinite(exact).all()):
            base_is_bad = not bool(torch.isfinite(base).all())
            bad = pair.base.where(in_base.tensor) if base_is_bad else pair.aligned.where(part.tensor)
            raise fail(f"{bad} holds a value that is not finite")
        kept = stored[at : at + rows]
        kept.copy_(exact.float())
        if not bool(torch.isfinite(kept).all()):
            where = pair.aligned.where(part.tensor)
            raise fail(f"{where}: the difference does not fit {pair.options.dtype}; choose another dtype")
        lost += float((kept.double() - exact).square().sum())
        whole += float(exact.square().sum())
    base_sha, aligned_sha = (Digest(sha.hexdigest()) for sha in hashes)
    return stored, (lost / whole) ** 0.5 if whole > 0.0 else 0.0, (base_sha, aligned_sha)


def _rows(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a matrix processed at a time."""
    return max(1, BLOCK_BYTES // (8 * max(shape[1], 1)))


def _norm(v: Tensor) -> float:
    rows = _rows(v.shape)
    total = sum(float(v[at : at + rows].double().square().sum()) for at in range(0, v.shape[0], rows))
    return math.sqrt(total)


def _zero_info(name: str, v: Tensor) -> ModuleInfo:
    return ModuleInfo(name, v.shape[0], v.shape[1], 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, (), (), None, None, 0)


def _info(name: str, v: Tensor, norm: float, rounding: float, options: BuildOptions, stage: Path) -> ModuleInfo:
    found = spectrum_of(v, options.keep, norm)
    t = found.triples
    triples = _save(stage, f"{name}.triples.safetensors", {"u": t.u, "s": t.s, "r": t.r})
    stored = None if options.compact else _save(stage, f"{name}.v.safetensors", {"v": v})
    return ModuleInfo(
        name=name,
        d_out=v.shape[0],
        d_in=v.shape[1],
        v_norm=norm,
        s1=found.s1,
        lambda_max=found.s1**2 / norm,
        c_norm=found.c_norm,
        rounding=rounding,
        top_k=len(t.s),
        triples_error=found.error,
        nodes=found.nodes,
        counts=found.counts,
        v=stored,
        triples=triples,
        outputs=t.u.shape[1],
    )


def _save(stage: Path, file: str, tensors: dict[str, Tensor]) -> FileInfo:
    path = stage / file
    path.unlink(missing_ok=True)
    save_file(tensors, path)
    path.chmod(FILE_MODE)
    _sync(path)
    return FileInfo(file, _hash(path), path.stat().st_size)


def _hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically: to a temporary file beside it, synced, renamed."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    _sync(beside)
    beside.rename(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
