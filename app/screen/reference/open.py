"""Opened reference: verified to be intact and the pinned one, and held for screening.

Small files are copied into memory, from the same bytes that were verified. Large ones are mapped: a file replaced on disk
does not change the mapping, and a file changed in place is detected before and after each use, which then fails.

Mapping cannot survive one case: a file truncated in place while it is read ends the process (SIGBUS). Nothing unscreened
is served then, and the next start refuses the reference. The builder's files are read-only, and replacing a directory is
harmless; if even the operator's own tools are not trusted, a larger `hold_bytes` keeps V in memory.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from app.domain.digest import Digest, digest_of
from app.domain.lora import Shape
from app.domain.policy import Comparison, Policy
from app.domain.singular_vectors import SingularVectors
from app.screen.reference.checkpoint import fail
from app.screen.reference.manifest import MANIFEST, FileInfo, Manifest, ModuleInfo, parse
from app.screen.reference.spectrum import Triples, needed, shares_of

ALL: Final = 1.0 - 1e-6
"""Share of ‖V‖² from which the kept triples are all of V: what is missing is the rounding of their numbers."""

HOLD_BYTES: Final = 256 << 20
"""Largest size of all V together that is copied into memory (a small model's); above it, V is mapped."""

MANIFEST_BYTES: Final = 64 << 20
"""Largest reference.json that is read: thousands of modules need a few MiB."""

_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class _Watch:
    """A mapped file, with its size and change time when it was verified."""

    path: Path
    fd: int
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    v: Mapping[str, Tensor]
    triples: Mapping[str, Triples]
    watched: tuple[_Watch, ...]


class Reference:
    """Opened reference: manifest, V and its singular triples. Reading it is safe from any thread."""

    def __init__(self, digest: Digest, manifest: Manifest, held: _Held) -> None:
        self.digest: Final = digest
        self.manifest: Final = manifest
        self._held = held
        self._shares = {name: shares_of(t.s, manifest.modules[name].v_norm) for name, t in held.triples.items()}
        shapes = {name: manifest.modules[name].shape for name in sorted(manifest.modules)}
        self.modules: Final[Mapping[str, Shape]] = MappingProxyType(shapes)

    @property
    def compact(self) -> bool:
        """True if V was left out: only the `input` comparison can be made."""
        return self.manifest.compact

    def info(self, module: str) -> ModuleInfo:
        """Return a module's entry of the manifest. Raises KeyError if the reference has no module of that name."""
        return self.manifest.modules[module]

    def v(self, module: str) -> Tensor | None:
        """Return V (d_out, d_in) in the storage dtype, mapped; None if left out or zero. Never write to it."""
        return self._held.v.get(module)

    def triples(self, module: str) -> Triples | None:
        """Return the top singular triples of V, in memory; None if V is zero."""
        return self._held.triples.get(module)

    def inputs(self, module: str, k: int) -> Tensor:
        """Return R_k (d_in, k): the inputs V reads most. Raises KeyError for a module whose V is zero."""
        return self._held.triples[module].r[:, :k]

    def outputs(self, module: str, k: int) -> Tensor:
        """Return U_k (d_out, k): the outputs V writes most. Raises KeyError for a module whose V is zero."""
        return self._held.triples[module].u[:, :k]

    def singular_vectors(self, module: str, policy: Policy) -> SingularVectors:
        """Return the inputs and outputs that `policy` measures and would remove. Raises KeyError for a module with V zero.

        Inputs: the fewest whose s_j² together reach the policy's energy · ‖V‖_F², at most its top_k. `check_policy` holds
        that the reference keeps them.
        """
        k = min(policy.top_k, needed(self._shares[module], policy.energy))
        return SingularVectors(self.inputs(module, k), self.outputs(module, policy.project_outputs))

    def held(self, module: str, inputs: int | None = None) -> float:
        """Return the share of ‖V‖² that the first inputs hold, or all that are kept. Raises KeyError where V is zero."""
        shares = self._shares[module]
        return shares[-1] if inputs is None or inputs >= len(shares) else shares[inputs - 1]

    def needs(self, module: str, energy: float) -> int | None:
        """Return how many inputs hold this share (below 1) of ‖V‖²; None if all that are kept hold less."""
        shares = self._shares[module]
        return needed(shares, energy) if shares[-1] >= energy else None

    @property
    def alive(self) -> tuple[str, ...]:
        """Modules whose V is not zero, sorted."""
        return tuple(sorted(self._shares))

    def check_unchanged(self) -> None:
        """Raise Unavailable BAD_REFERENCE if a mapped file was changed in place since it was verified."""
        for watch in self._held.watched:
            now = os.fstat(watch.fd)
            if (now.st_size, now.st_mtime_ns) != (watch.size, watch.changed_ns):
                raise fail(f"{watch.path}: changed while in use; restart with an intact reference")

    def close(self) -> None:
        """Close the files. Tensors already returned stay valid."""
        for watch in self._held.watched:
            os.close(watch.fd)
        self._held, self._shares = _Held({}, {}, ()), {}


def open_reference(
    path: Path,
    pinned: Digest | None,
    verify_files: bool = True,
    *,
    hold_bytes: int = HOLD_BYTES,
    device: str = "cpu",
) -> Reference:
    """Open the reference at `path`.

    pinned: the digest it must have, None for any. verify_files: hash every file (about a second per GB). hold_bytes: V is
    copied into memory if all of it is at most this size. device: device of V and its products, in torch's notation; V must
    fit (untested on a GPU: none was available). Raises Unavailable BAD_REFERENCE, naming the file and the remedy.
    """
    data = _read_manifest(path)
    digest = digest_of(data)
    if pinned is not None and digest != pinned:
        raise fail(f"{path}: this is reference {digest}, the pinned one is {pinned}; restore it or change the pin")
    manifest = parse(data)
    infos = [manifest.modules[name] for name in sorted(manifest.modules)]
    copy = sum(info.v.bytes for info in infos if info.v is not None) <= hold_bytes
    v: dict[str, Tensor] = {}
    triples: dict[str, Triples] = {}
    watched: list[_Watch] = []
    try:
        for info in infos:
            _check_files(info, manifest)
            if info.triples is not None:
                triples[info.name] = _triples(path, info, info.triples, verify=verify_files)
            if info.v is not None:
                tensors, watch = _load(path, info.v, copy=copy, verify=verify_files)
                v[info.name] = _placed(_shaped(info, tensors, "v", (info.d_out, info.d_in)), device)
                watched += [] if watch is None else [watch]
    except BaseException:
        for watch in watched:
            os.close(watch.fd)
        raise
    return Reference(digest, manifest, _Held(v, triples, tuple(watched)))


def _placed(v: Tensor, device: str) -> Tensor:
    try:
        return v.to(device)
    except (
        RuntimeError,
        AssertionError,
        ValueError,
    ) as error:  # torch raises all three for a device that does not exist
        raise fail(f"device {device!r} cannot hold V: {str(error).splitlines()[0]}") from error


def check_policy(reference: Reference, policy: Policy, asked_by: str = "the policy") -> None:
    """Raise Unavailable BAD_REFERENCE if `reference` cannot serve `policy`, naming the module and the remedy.

    asked_by: the policy's name in the message, such as a rung.
    """
    if reference.compact and policy.comparison is not Comparison.INPUT:
        raise fail(
            f"a compact reference serves the `input` comparison only, not `{policy.comparison}`; "
            "build one with V or set the comparison to input"
        )
    for name in reference.alive:
        _check_inputs(reference, name, policy, asked_by)
        _check_outputs(reference, name, policy, asked_by)


def _check_inputs(reference: Reference, name: str, policy: Policy, asked_by: str) -> None:
    kept, held = reference.info(name).top_k, reference.held(name)
    if policy.top_k <= kept or held >= min(policy.energy, ALL):
        return
    keeps = f"module {name} keeps {kept} inputs, which hold {held:.3f} of ‖V‖²"
    if policy.energy == 1.0:
        raise fail(f"{keeps}; {asked_by} takes out {policy.top_k}: build the reference with --top-k {policy.top_k}")
    raise fail(
        f"{keeps}; {asked_by} takes out {policy.energy:g}: build the reference with --energy {policy.energy:g} and "
        f"--top-k above {kept}, or ask for less (GATEWAY_ENERGY, GATEWAY_RUNGS; GATEWAY_TOP_K={kept} bounds the policy)"
    )


def _check_outputs(reference: Reference, name: str, policy: Policy, asked_by: str) -> None:
    info = reference.info(name)
    complete = info.outputs == info.top_k and reference.held(name) >= ALL
    if policy.project_outputs > info.outputs and not complete:
        raise fail(
            f"module {name} keeps {info.outputs} outputs; {asked_by} takes out {policy.project_outputs}: build the "
            f"reference with --outputs {policy.project_outputs}, or ask for fewer (GATEWAY_PROJECT_OUTPUTS, GATEWAY_RUNGS)"
        )


def short_of_energy(reference: Reference, policy: Policy) -> int:
    """Count the modules in which the inputs allowed by the policy's own top_k hold less of ‖V‖² than its energy."""
    if policy.energy == 1.0:
        return 0
    return sum(reference.held(name, policy.top_k) < policy.energy for name in reference.alive)


def _read_manifest(path: Path) -> bytes:
    try:
        with (path / MANIFEST).open("rb") as f:
            data = f.read(MANIFEST_BYTES + 1)
    except OSError as error:
        raise fail(f"{path / MANIFEST}: {error.strerror}; not a finished reference, build it anew") from error
    if len(data) > MANIFEST_BYTES:
        raise fail(f"{path / MANIFEST}: larger than {MANIFEST_BYTES} bytes, not a reference")
    return data


def _check_files(info: ModuleInfo, manifest: Manifest) -> None:
    """Refuse a manifest with missing or superfluous files for a module."""
    alive = info.v_norm > 0.0
    if (info.triples is not None) != alive or (info.v is not None) != (alive and not manifest.compact):
        raise fail(f"{MANIFEST}: module {info.name} lacks a file or has one too many; rebuild the reference")


def _triples(path: Path, info: ModuleInfo, file: FileInfo, *, verify: bool) -> Triples:
    tensors, _ = _load(path, file, copy=True, verify=verify)
    k = info.top_k
    u = _shaped(info, tensors, "u", (info.d_out, info.outputs))
    return Triples(u, _shaped(info, tensors, "s", (k,)), _shaped(info, tensors, "r", (info.d_in, k)))


def _shaped(info: ModuleInfo, tensors: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in tensors or tuple(tensors[key].shape) != shape:
        raise fail(f"module {info.name}: {key} is missing or not {shape}; rebuild the reference")
    return tensors[key]


def _load(path: Path, file: FileInfo, *, copy: bool, verify: bool) -> tuple[dict[str, Tensor], _Watch | None]:
    """Return the tensors of one file, hashed through the same descriptor and the same bytes that are used afterwards."""
    where = path / file.name
    if Path(file.name).name != file.name:
        raise fail(f"{MANIFEST}: {file.name!r} lies outside the reference")
    try:
        fd = os.open(where, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise fail(f"{where}: {error.strerror}; restore it or rebuild the reference") from error
    keep = False
    try:
        stat = os.fstat(fd)
        if stat.st_size != file.bytes:
            raise fail(f"{where}: {stat.st_size} bytes instead of {file.bytes}; restore it or rebuild the reference")
        data = _read_all(fd, file.bytes) if copy else mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
        if verify and hashlib.sha256(data).hexdigest() != file.sha256:
            raise fail(f"{where}: its bytes are not the recorded ones; restore it or rebuild the reference")
        tensors = _tensors(where, data)
        keep = not copy
        return tensors, _Watch(where, fd, stat.st_size, stat.st_mtime_ns) if keep else None
    finally:
        if not keep:
            os.close(fd)


def _read_all(fd: int, size: int) -> bytearray:
    data = bytearray(size)
    with os.fdopen(os.dup(fd), "rb") as f:
        read = f.readinto(data)
    return data if read == size else data[:read]


def _tensors(where: Path, data: bytearray | mmap.mmap) -> dict[str, Tensor]:
    """Return views into a safetensors file's bytes: 8 bytes of header length, JSON header, data."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:start]))
        found: dict[str, Tensor] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            dtype = _DTYPES[entry["dtype"]]
            flat = torch.frombuffer(data, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
            found[name] = flat.view(entry["shape"])
        return found
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise fail(f"{where}: not readable ({error}); rebuild the reference") from error
