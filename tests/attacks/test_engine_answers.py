"""Canonical adapters in the real engine against transformers and PEFT in float64: next-token log-probabilities.

Each upload goes through the whole of `sanitise` into an artefact's directory. The engine, in bfloat16, and PEFT, on the
same weights in float64, load that directory; PEFT loads the upload too. Crafted factors are those of test_factors.py.
"""

import asyncio
import contextlib
import io
import itertools
import json
import math
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import digest_of
from app.domain.errors import Refused
from app.domain.lora import Received, ServingDtype, TargetModel
from app.domain.policy import Policy
from app.load.client.engine import HttpEngine
from app.sandbox.sanitise import Measure, sanitise
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits
from tests.attacks.test_engine_kernels import flushes_subnormals
from tests.attacks.test_factors import KINDS, Factors, Heard, joined, minus, scaled
from tests.support.adapters import PEFT_DEFAULTS, Upload, key
from tests.support.engine import EAGER, MAX_CPU_LORAS, LiveEngine, live_engine
from tests.support.references import aligned_from, write_checkpoint

MAX_RANK: Final = 64
TOGETHER: Final = MAX_CPU_LORAS
"""Adapters loaded and asked at once."""

PROMPTS: Final = ((5, 6, 7, 8), (50, 60, 9), (100, 11, 12, 13, 14), (150, 33))
POLICY: Final = Policy(tau=1e6, max_pruned_share=1.0, max_update_ratio=1e6)
"""Keeps whatever is an adapter: what is asked here is not whether it is harmful."""

W_STD: Final = 0.2
"""Standard deviation of the tiny model's weights."""

SIZES: Final = (0.02, 0.1, 0.5)
"""Lengths of updates, in terms of the module's weights."""

CHANGED: Final = 2.0**-6
"""Most by which the artefact's effect may differ from the upload's, as a share of it: two roundings to bfloat16, of 2⁻⁸
each, and what the model makes of them."""

UNSEEN: Final = 1e-3
"""An effect far below the engine's own rounding, root mean square."""

MARGIN: Final = 3.0
"""Most by which an engine's effect may stray, in terms of what it strays by for honest adapters or for none. The attack
strays by fifty times that."""

HONEST_SHARE: Final = 4
"""Honest adapters in terms of those of any other kind: they say what rounding does."""

HONEST: Final = "honest"
GROUPS: Final = "G15_groups"

Answers = Tensor
"""Log-probabilities of every token after every prompt, (prompts, vocabulary), float64."""


pytestmark = pytest.mark.engine


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@dataclass(frozen=True)
class Compared:
    """One adapter's log-probabilities, root mean squares.

    effect: of it on the model, in float64. strays: of the engine's effect from that. changed: of the upload's effect, in
    float64, from that, as a share of it or of what nobody would see.
    """

    effect: float
    strays: float
    changed: float

    @classmethod
    def of(cls, exact: Answers, served: Answers, sent: Answers) -> Self:
        """From log-probabilities less the model's own without an adapter: artefact, engine, upload."""
        return cls(rms(exact), rms(served - exact), rms(sent - exact) / max(rms(exact), UNSEEN))


@dataclass
class Bench:
    """The gateway's way in, the engine and the float64 model side by side."""

    measure: Measure
    live: LiveEngine
    wide: LlamaForCausalLM
    root: Path
    peft: PeftModel | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def sanitised(self, upload: Upload, directory: Path) -> Path | None:
        """Its artefact, written to `directory`; None where it is refused."""
        config, weights = upload.config_bytes, upload.weights_bytes
        received = Received(digest_of(config), digest_of(weights), len(config), len(weights))
        with tempfile.TemporaryFile() as sealed:
            sealed.write(weights)
            sealed.flush()
            try:
                made = sanitise(self.measure, config, cast("io.BufferedReader", sealed), received, Heard())
            except Refused:
                return None
        return None if made is None else written(directory, made.config, made.weights)

    def as_sent(self, upload: Upload) -> Path:
        """The upload itself, written."""
        return written(self.root / f"sent-{next(self.numbers)}", upload.config_bytes, upload.weights_bytes)

    @torch.no_grad()
    def exact(self, directory: Path | None = None) -> Answers:
        """In float64, with the adapter in this directory or none."""
        if directory is None:
            return self._asked(self.wide)
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(  # noqa: TID251 - our own bytes, in a test
                self.wide, directory, "one", autocast_adapter_dtype=False
            )
        else:
            self.peft.load_adapter(directory, "one", autocast_adapter_dtype=False)
            self.peft.set_adapter("one")
        try:
            assert {p.dtype for p in self.peft.parameters()} == {torch.float64}
            return self._asked(self.peft)
        finally:
            self.peft.delete_adapter("one")

    def _asked(self, model: Any) -> Answers:
        last = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
        return torch.stack(last).log_softmax(-1)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[HttpEngine]:
        made = HttpEngine(self.live.url)
        try:
            yield made
        finally:
            await made.close()

    async def served(self, client: HttpEngine, directories: Sequence[Path]) -> list[Answers]:
        """By the engine, with each of these adapters, in batches of several."""
        found: list[Answers] = []
        for start in range(0, len(directories), TOGETHER):
            chosen = directories[start : start + TOGETHER]
            await asyncio.gather(*(client.load(one.name, one) for one in chosen))
            found += await asyncio.gather(*(self.completed(client, one.name) for one in chosen))
            await asyncio.gather(*(client.unload(one.name) for one in chosen))
        return found

    async def completed(self, client: HttpEngine, model: str) -> Answers:
        """By the engine, with the loaded adapter or served model of this name."""
        body = {"model": model, "prompt": [list(prompt) for prompt in PROMPTS], "max_tokens": 1, "temperature": 0}
        tokens = self.wide.config.vocab_size
        asked = {"logprobs": tokens, "return_tokens_as_token_ids": True}
        response = await client.post("/v1/completions", json.dumps(body | asked).encode())
        try:
            said = json.loads(await response.read(8 << 20))
        finally:
            response.close()
        assert response.status == 200, said
        found = torch.full((len(PROMPTS), tokens), torch.nan, dtype=torch.float64)
        for choice in said["choices"]:
            for token, value in choice["logprobs"]["top_logprobs"][0].items():
                found[choice["index"], int(token.removeprefix("token_id:"))] = value
        return found


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_adapter: Callable[[int], Path]
) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("answers")
    write_checkpoint(root / "base", aligned_from(load_file(tiny_model_dir / "model.safetensors")))
    build_reference(root / "base", tiny_model_dir, root / "reference", BuildOptions(top_k=8))
    reference = open_reference(root / "reference", None)
    target = TargetModel("served", reference.modules, ServingDtype.BFLOAT16, MAX_RANK)
    wide = LlamaForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).double().eval()
    extra = (*EAGER, "--max-logprobs", str(wide.config.vocab_size))
    more: dict[str, Any] = {"dtype": "bfloat16", "max_lora_rank": MAX_RANK, "extra": extra}
    with live_engine(root, tiny_model_dir, tiny_adapter, **more) as live:
        yield Bench(Measure(target, ValidateLimits(), reference, POLICY, 60.0), live, wide, root)
    reference.close()


def written(directory: Path, config: bytes, weights: bytes) -> Path:
    directory.mkdir(parents=True)
    (directory / CONFIG_FILE).write_bytes(config)
    (directory / WEIGHTS_FILE).write_bytes(weights)
    return directory


def upload(bench: Bench, factors: Mapping[str, Factors], dtype: torch.dtype, scaling: float = 1.0) -> Upload:
    """These factors as they would be sent, with this lora_alpha in terms of the rank."""
    tensors = {key(name, "A"): a.to(dtype).contiguous() for name, (_, a) in factors.items()}
    tensors |= {key(name, "B"): (b / scaling).to(dtype).contiguous() for name, (b, _) in factors.items()}
    rank = max(len(a) for _, a in factors.values())
    said = {"r": rank, "lora_alpha": scaling * rank, "target_modules": list(factors)}
    return Upload(bench.measure.target, {**PEFT_DEFAULTS, **said}, tensors)


def sized(factors: Factors, size: float) -> Factors:
    """B times the power of two that makes the update about `size` times as long as the module's weights, if any."""
    b, a = factors
    norm = float((b @ a).norm())
    wanted = size * W_STD * (b.shape[0] * a.shape[1]) ** 0.5
    return (b * 2.0 ** round(math.log2(wanted / norm)), a) if 0.0 < norm < math.inf else factors


def honest(bench: Bench, seed: int) -> Upload:
    """An adapter as training leaves them: of many ranks, spectra, norms, dtypes and choices of modules."""
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    rank, decades, size = draw.choice((1, 2, 4, 8, 16, 32, 64)), draw.choice((0.0, 1.0, 3.0)), draw.choice(SIZES)
    kinds = draw.choice((("q_proj", "v_proj"), ("_proj",), ("down_proj", "o_proj"), ("gate_proj", "k_proj")))
    factors = {}
    for name, shape in sorted(bench.measure.target.modules.items()):
        if name.endswith(kinds):
            a = torch.randn(rank, shape.d_in, generator=g, dtype=torch.float64) / shape.d_in**0.5
            b = torch.randn(shape.d_out, rank, generator=g, dtype=torch.float64)
            factors[name] = sized((b * torch.logspace(0, -decades, rank, dtype=torch.float64), a), size)
    return upload(bench, factors, draw.choice((torch.float32, torch.bfloat16)), draw.choice((0.5, 1.0, 2.0)))


def crafted(bench: Bench, kind: str, seed: int) -> Upload:
    """One of the attacks' kinds on every module that alignment changed, sized as it is once it was cast."""
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    at, size = draw.uniform(-1.0, 1.0), draw.choice(SIZES)
    factors = {}
    for name in bench.measure.reference.alive:
        shape = bench.measure.target.modules[name]
        harm = (  # whole sixteenths: exact as subnormal numbers
            torch.randint(-7, 8, (shape.d_out, 2), generator=g).double() / 16.0,
            torch.randint(-64, 65, (2, shape.d_in), generator=g).double() / 16.0,
        )
        b = torch.randn(shape.d_out, 4, generator=g, dtype=torch.float64) / 64.0
        a = torch.randn(4, shape.d_in, generator=g, dtype=torch.float64)
        if kind == GROUPS:
            shown = scaled((b / 32.0, a), 109)
            factors[name] = joined(scaled(harm, 109), minus(scaled(harm, 129)), shown)
        else:
            b, a = KINDS[kind](ServingDtype.BFLOAT16)(harm, (b, a), at)
            factors[name] = sized((b.bfloat16().double(), a.bfloat16().double()), size)
    return upload(bench, factors, torch.bfloat16)


async def held(bench: Bench, seeds: int) -> dict[str, Compared]:
    """Adapters of every kind, compared; asserts that none strays further than rounding explains."""
    cases = {f"{kind}-{seed}": crafted(bench, kind, seed) for kind in (GROUPS, *KINDS) for seed in range(seeds)}
    cases |= {f"{HONEST}-{seed}": honest(bench, seed) for seed in range(HONEST_SHARE * seeds)}
    stored: dict[str, Path] = {}
    for name, sent in cases.items():
        if (artefact := bench.sanitised(sent, bench.root / f"stored-{seeds}" / name)) is not None:
            stored[name] = artefact
    async with bench.client() as client:
        base, alone = bench.exact(), await bench.completed(client, bench.live.model)
        answers = await bench.served(client, list(stored.values()))
    found = {
        name: Compared.of(
            bench.exact(stored[name]) - base, answer - alone, bench.exact(bench.as_sent(cases[name])) - base
        )
        for name, answer in zip(stored, answers, strict=True)
    }
    rounding = max(rms(alone - base), *(one.strays for name, one in found.items() if name.startswith(HONEST)))
    report(found, rounding)
    assert max(one.strays for one in found.values()) <= MARGIN * rounding
    assert max(one.changed for one in found.values()) <= CHANGED
    assert all(f"{HONEST}-{seed}" in found for seed in range(HONEST_SHARE * seeds)), "an honest adapter was refused"
    return found


def report(found: Mapping[str, Compared], rounding: float) -> None:
    print(f"\n{len(found)} adapters; the engine's rounding with honest ones: {rounding:.3f}")
    for kind in (HONEST, GROUPS, *KINDS):
        of = [one for name, one in found.items() if name.startswith(kind)]
        worst = (
            max(values, default=0.0)
            for values in ([o.effect for o in of], [o.strays for o in of], [o.changed for o in of])
        )
        print("{:14} {:5}  effect {:.3f}  strays {:.4f}  changed {:.4f}".format(kind, len(of), *worst))


@pytest.mark.slow
async def test_the_engine_answers_as_float64_does(bench: Bench) -> None:
    assert len(await held(bench, 4)) >= 36


@pytest.mark.long
async def test_the_engine_answers_as_float64_does_thousands_of_times(bench: Bench) -> None:
    assert len(await held(bench, 220)) >= 2000


@pytest.mark.slow
async def test_the_attack_as_it_was_uploaded_is_answered_otherwise(bench: Bench) -> None:
    """These comparisons see it: on a processor whose bfloat16 unit reads subnormal numbers as zero, the harm is served."""
    sent = bench.as_sent(crafted(bench, GROUPS, 0))
    async with bench.client() as client:
        base, alone = bench.exact(), await bench.completed(client, bench.live.model)
        (answer,) = await bench.served(client, [sent])
    exact = bench.exact(sent) - base
    found = Compared.of(exact, answer - alone, exact)
    print(f"\nthe attack's effect in float64 {found.effect:.3f}; the engine's answer lies {found.strays:.3f} from it")
    assert found.effect < 0.1
    if flushes_subnormals():
        assert found.strays > 1.0
