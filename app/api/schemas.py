"""Response models: the JSON of every answer that the gateway writes itself, and FastAPI's description of it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from app.domain.adapter_source import BUCKET_FORM, HUB_FORM
from app.domain.errors import CODES, GatewayError, envelope
from app.domain.version_state import State

Time = Annotated[
    datetime, PlainSerializer(datetime.isoformat), WithJsonSchema({"type": "string", "format": "date-time"})
]
ErrorCode = Annotated[str, WithJsonSchema({"type": "string", "enum": sorted(CODES)})]


class View(BaseModel):
    """Response model. Fields that were not given are left out of the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def response(self, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """Return the response with this body."""
        body = self.model_dump_json(exclude_unset=True)
        return Response(body, status, headers, media_type="application/json")

    def plain(self) -> dict[str, Any]:
        """Return the body as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class Report(View):
    """Files as received, the verdict about them, and the behaviour on canaries, as the release that measured them wrote it.

    source: origin of an import, and the commit or the ETags that were read; absent for an upload. behaviour: absent if none
    was looked at. asked_again: canaries asked of the published version later. floor: verdict about the upload, if canaries
    asked for a stronger correction; `verdict` is then that of the correction. remarks: what the adapter may not do although
    it is served; absent if there are none.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    received: dict[str, Any] = {}
    source: dict[str, Any] = {}
    verdict: dict[str, Any] = {}
    behaviour: dict[str, Any] = {}
    floor: dict[str, Any] = {}
    asked_again: dict[str, Any] = {}
    remarks: list[str] = []


class InEngine(View):
    """Engines that hold a version, by number. last_used: by requests through this gateway process."""

    loaded: bool
    loaded_in: list[int]
    in_flight: int
    last_used: Time | None


class ErrorDetail(View):
    """One fault of an upload. where: the field, tensor or module. what_to_do: its remedy."""

    code: ErrorCode
    where: str
    message: str
    what_to_do: str


class VersionError(View):
    """Reason why a version ended. code: one of this release's or of an earlier one's. details: every fault of an upload."""

    code: str
    message: str | None
    details: list[ErrorDetail] | None = None


class Version(View):
    """One version of an adapter. model: the name that requests may use for it, null while it does not answer.

    rung: correction that canaries asked for, 0 for the floor; null if its behaviour was not looked at.
    """

    name: str
    version: int
    model: str | None
    state: State
    active: bool
    withheld: str | None
    unloaded: bool
    outcome: str | None
    modules_total: int | None
    modules_pruned: int | None
    modules_projected: int | None
    digest: str | None
    verdict_id: str | None
    rung: int | None
    engine: InEngine | None
    created_at: Time
    error: VersionError | None
    report: Report | None = None


class TrafficPart(View):
    """Version in a roll-out. weight: per cent of the conversations. shadow: whether it gets copies of the others' requests.
    withheld: reason why it gets no request at present, and the stable version gets its share."""

    version: int
    weight: int
    shadow: bool
    withheld: str | None


class Traffic(View):
    """Roll-out of an adapter. stable_version: the one that an abort leaves. guard: whether it aborts by itself."""

    name: str
    stable_version: int
    weights: dict[str, int]
    shadow: int | None
    guard: bool
    versions: list[TrafficPart]


class Adapter(View):
    """One adapter with its versions, newest first. owner: for administrators only. traffic: roll-out that is under way."""

    name: str
    active_version: int | None
    created_at: Time
    versions: list[Version]
    owner: str | None = None
    traffic: Traffic | None = None


class AdapterPage(View):
    """Some adapters in the order of their names. next: value of `after` for the following page, null on the last one."""

    adapters: list[Adapter]
    next: str | None


class Owner(View):
    """Owner of an adapter after a transfer."""

    name: str
    owner: str


class Signature(View):
    """One signature of an envelope, base64. keyid: SHA-256 of the public key, a hint only."""

    keyid: str
    sig: str


class Envelope(View):
    """DSSE envelope; payload: an in-toto statement, base64."""

    payloadType: str  # noqa: N815 - the name in DSSE
    payload: str
    signatures: list[Signature]


class SigstoreBundle(View):
    """Sigstore bundle with a public key's hint: the file `model.sig` of OpenSSF Model Signing."""

    mediaType: str  # noqa: N815 - the names in Sigstore's bundle
    verificationMaterial: dict[str, Any]  # noqa: N815
    dsseEnvelope: Envelope  # noqa: N815


class Error(View):
    """OpenAI's error object. details: every fault of an upload; the first one's code is the error's."""

    message: str
    type: str
    param: str | None
    code: ErrorCode
    details: list[ErrorDetail] | None = None

    @classmethod
    def of(cls, error: GatewayError) -> Self:
        """Return the error's object."""
        return cls.model_validate(envelope(error)["error"])


class Refusal(View):
    """Every error. version: the version that the refusal left in the catalogue."""

    error: Error
    version: Version | None = None


class WarmEngine(View):
    """One engine after a warm-up: the seconds it took, and its error if the version is not warm there."""

    engine: int
    warm: bool
    seconds: float
    error: Error | None


class Warmed(View):
    """Result of a warm-up; without engines for an emptied version, which the served model answers."""

    model: str
    digest: str | None
    engines: list[WarmEngine]


class Resolved(View):
    """Artefact behind an engine name. bytes: size of each of its files. statement: signed envelope about it, if any."""

    model: str
    engine_name: str
    digest: str
    bytes: dict[str, int]
    statement: dict[str, Any] | None


class Health(View):
    """The process answers."""

    status: Literal["ok"]


class GatewayVersion(View):
    """Version of the gateway."""

    version: str


class Readiness(View):
    """Parts of the gateway, each `ok` or its problem, and details about the served model."""

    status: str
    parts: dict[str, str]
    details: dict[str, str]


class Model(View):
    """OpenAI's model object; version and digest for adapters."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    version: int | None = None
    digest: str | None = None


class Models(View):
    """OpenAI's list of models."""

    object: Literal["list"]
    data: list[Model]


class _Relayed(BaseModel):
    """Answer of the engine, relayed: only the fields that the gateway relabels are described."""

    model_config = ConfigDict(extra="allow")

    model: str


class Completion(_Relayed):
    """Chat completion or text completion."""

    choices: list[dict[str, Any]]


class ModelResponse(_Relayed):
    """OpenAI's response object."""

    id: str
    object: Literal["response"]


class Embeddings(_Relayed):
    """OpenAI's list of embeddings."""

    data: list[dict[str, Any]]


class Message(_Relayed):
    """Anthropic's message object."""

    id: str
    type: Literal["message"]
    content: list[dict[str, Any]]


class TokenCount(BaseModel):
    """Number of tokens of a prompt, relayed."""

    model_config = ConfigDict(extra="allow")

    input_tokens: int


class Tokenized(BaseModel):
    """Token ids of a prompt, relayed. max_model_len: tokens of the engine's context."""

    model_config = ConfigDict(extra="allow")

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """Text of token ids, relayed."""

    model_config = ConfigDict(extra="allow")

    prompt: str


class NewOwner(BaseModel):
    """Body of a transfer."""

    model_config = ConfigDict(extra="forbid")

    owner: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


class NewImport(BaseModel):
    """Body of an upload that the gateway fetches itself. source: where it is, such as hf://org/repository@revision."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    source: str = Field(description=f"{HUB_FORM} or {BUCKET_FORM}, fetched by the gateway")
