"""The reader of a child's answer: taken in its order and form only, whatever values stand in it."""

import json
import socket
import time
from typing import Any

import pytest
import torch

from app.domain.artefact import Artefact
from app.domain.digest import Digest
from app.domain.errors import BAD_CONFIG, SCREENING_FAILED, SCREENING_KILLED, GatewayError, Refused, Unavailable
from app.domain.lora import Adapter, LoraModule, ServingDtype
from app.domain.manifest import verdict_json
from app.domain.policy import Comparison, Policy
from app.domain.verdict import METRIC_VERSION, Decision, ModuleVerdict, Outcome, Reason, Verdict
from app.prune.canonical import canonicalise
from app.sandbox.answer import AnswerReader
from app.sandbox.protocol import FRAME, Line, OutOfFormError
from tests.fuzz.answer_target import MEASURE, MODULES, RECEIVED, TARGET, Checking

NAME = next(iter(MODULES))
Frame = tuple[dict[str, Any], bytes]


def verdict(outcome: Outcome, decision: Decision, reason: Reason) -> Verdict:
    scores = dict.fromkeys(Comparison, 0.5)
    module = ModuleVerdict(NAME, 1, 1.0, scores, 0.1, 1.0, 2.0, 3.0, decision, reason, 0.2, 0.3, 1)
    return Verdict(Digest("1" * 64), METRIC_VERSION, Policy(), Digest("0" * 64), outcome, "why", (module,))


CLEAN = verdict(Outcome.CLEAN, Decision.KEEP, Reason.BELOW_TAU)
MADE = canonicalise(
    Adapter((LoraModule(NAME, torch.zeros(1, 3), torch.zeros(2, 1), 1.0),), ServingDtype.FLOAT32, balanced=True),
    *(CLEAN, RECEIVED, TARGET),
)
TOOK: Frame = ({"took": "validate", "seconds": 0.5, "outcome": "ok"}, b"")
VALIDATED: Frame = ({"validated": True}, b"")
SCREENED: Frame = ({"screened": verdict_json(CLEAN)}, b"")
CONFIG: Frame = ({"config": True}, MADE.config)
WEIGHTS: Frame = ({"weights": True}, MADE.weights)
DONE: Frame = ({"done": True}, b"")
GOOD = [TOOK, VALIDATED, SCREENED, CONFIG, WEIGHTS, DONE]


def read(frames: list[Frame]) -> Artefact | None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            for fields, payload in frames:
                text = json.dumps(fields).encode()
                theirs.sendall(FRAME.pack(len(text), len(payload)) + text + payload)
        return AnswerReader(MEASURE, RECEIVED, Checking()).read(Line(ours, time.monotonic() + 60))


def test_what_is_in_form_is_the_artefact() -> None:
    assert read(GOOD) == MADE


@pytest.mark.parametrize(
    "changed",
    [
        verdict(Outcome.REJECTED, Decision.REJECT, Reason.OVER_BUDGET),
        verdict(Outcome.EMPTIED, Decision.PRUNE, Reason.ABOVE_TAU),
    ],
)
def test_nothing_to_serve_is_no_artefact(changed: Verdict) -> None:
    frames: list[Frame] = [VALIDATED, ({"screened": verdict_json(changed)}, b""), DONE]
    assert read(frames) is None


@pytest.mark.parametrize("left_out", range(1, len(GOOD) - 1))
def test_a_frame_left_out_is_out_of_form(left_out: int) -> None:
    with pytest.raises(OutOfFormError):
        read([*GOOD[:left_out], *GOOD[left_out + 1 :]])


@pytest.mark.parametrize("until", range(len(GOOD)))
def test_an_answer_that_ends_early_is_an_end(until: int) -> None:
    with pytest.raises(EOFError):
        read(GOOD[:until])


ODD: list[Any] = ["x", None, [], {}, -1, 10**400, float("nan"), float("inf")]


@pytest.mark.parametrize("field", ["seconds", "took"])
@pytest.mark.parametrize("value", ODD)
def test_a_duration_that_is_none_is_out_of_form(field: str, value: Any) -> None:
    with pytest.raises(OutOfFormError):
        read([({**TOOK[0], field: value}, b"")])


@pytest.mark.parametrize("field", ["v_norm", "lambda_max", "update_norm", "scaling", "rank"])
@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), float("-inf"), "x", [], {}, True])
def test_a_measurement_that_is_none_is_out_of_form(field: str, value: Any) -> None:
    fields = verdict_json(CLEAN)
    fields["modules"][0][field] = value
    with pytest.raises(OutOfFormError):
        read([VALIDATED, ({"screened": fields}, b""), CONFIG, WEIGHTS, DONE])


@pytest.mark.parametrize("fields", [None, [], "x", 1, {}, {"modules": 1}, {"id": []}])
def test_a_verdict_that_is_none_is_out_of_form(fields: Any) -> None:
    with pytest.raises(OutOfFormError):
        read([VALIDATED, ({"screened": fields}, b"")])


@pytest.mark.parametrize("frame", [({"config": True}, b""), ({"config": "x"}, MADE.config), WEIGHTS, DONE])
def test_a_configuration_that_is_none_is_out_of_form(frame: Frame) -> None:
    with pytest.raises(OutOfFormError):
        read([VALIDATED, SCREENED, frame, WEIGHTS, DONE])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"refused": "bad_config", "message": "m", "param": "p"}, Refused(BAD_CONFIG, "m", param="p")),
        ({"refused": "bad_config", "message": "m", "param": None}, Refused(BAD_CONFIG, "m")),
        ({"refused": "screening_failed", "message": "m", "param": None}, Unavailable(SCREENING_FAILED, "m")),
        ({"died": "m"}, Refused(SCREENING_KILLED, "m")),
    ],
)
def test_a_refusal_comes_through(fields: dict[str, Any], expected: GatewayError) -> None:
    with pytest.raises(type(expected)) as caught:
        read([TOOK, (fields, b"")])
    assert (caught.value.code, caught.value.message, caught.value.param) == (
        *(expected.code, expected.message, expected.param),
    )


@pytest.mark.parametrize("fields", [{"refused": "nobody's"}, {"refused": []}, {"refused": "bad_config"}])
def test_a_refusal_that_is_none_is_out_of_form(fields: dict[str, Any]) -> None:
    with pytest.raises(OutOfFormError):
        read([(fields, b"")])


FAULT = {"code": "wrong_shape", "where": "q_proj", "message": "m", "what_to_do": "w"}


def refused(**fields: Any) -> Frame:
    return {"refused": "bad_config", "message": "why", "param": None, **fields}, b""


def test_a_refusals_faults_and_remedy_come_through() -> None:
    with pytest.raises(Refused) as caught:
        read([refused(remedy="do this", details=[FAULT | {"where": "q\x1b[2J"}] * 40)])
    assert caught.value.hint == "do this"
    assert len(caught.value.details) == 16
    assert caught.value.details[0].where.isprintable()


@pytest.mark.parametrize(
    "details", [1, [1], [{}], [FAULT | {"code": "made_up"}], {"a": 1}, [FAULT | {"code": []}]], ids=repr
)
def test_faults_out_of_form(details: Any) -> None:
    with pytest.raises(OutOfFormError):
        read([refused(details=details)])
