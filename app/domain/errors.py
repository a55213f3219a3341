"""Errors of this gateway: one exception tree and one table of error codes.

    GatewayError            has a Code, a message for people, and the part of the request at fault (`param`)
    ├── Refused             4xx: the caller must change the request; the same request gets the same answer
    └── Unavailable         5xx: not the caller's fault; `retryable` says whether waiting helps

A Code is one row of the table (`CODES`): stable name, HTTP status, the stage that raises it, a hint for the caller.
Packages raise `Refused(TOO_LARGE, "weights: 2.1 GB, the cap is 2.0 GB", param="weights")`; only the API turns errors into
responses.
"""

from dataclasses import asdict
from typing import Any, Final

from app.domain import error_code, fault
from app.domain.printable import MESSAGE_LIMIT, printable

Stage = error_code.Stage
Code = error_code.Code
Fault = fault.Fault

_code = error_code.declared
_D, _U, _V = Stage.DOOR, Stage.UPLOAD, Stage.VALIDATE
_S, _P, _T, _L, _R = Stage.SCREEN, Stage.PRUNE, Stage.STORE, Stage.LOAD, Stage.SERVE

# door: before a request's content is processed
UNAUTHORIZED = _code(
    "unauthorized", 401, _D, "Send `Authorization: Bearer <key>` (or `x-api-key: <key>`) with a key this gateway knows."
)
ISSUER_AWAY = _code(
    "issuer_away",
    503,
    _D,
    "Try again soon; the issuer of the token does not answer. API keys go on; the operator's log says why.",
    retryable=True,
)
SIGN_IN_FAILED = _code(
    "sign_in_failed",
    400,
    _D,
    "Begin again at /console/sign-in; if that fails too, ask the operator, or use an API key.",
)
FORBIDDEN = _code("forbidden", 403, _D, "Use a key with the role that the message names, or ask the operator for one.")
KEY_EXISTS = _code("key_exists", 409, _D, "Choose another name for the key, or rotate the one that has it.")
KEY_NOT_FOUND = _code(
    "key_not_found",
    404,
    _D,
    "Check the name; keys of the environment or of the keys file are changed where they stand.",
)
TOO_MANY_KEYS = _code("too_many_keys", 409, _D, "Revoke keys that are not used; rotating one keeps its name.")
TARGET_NOT_ALLOWED = _code(
    "target_not_allowed",
    422,
    _D,
    "Ask the operator to add the target's origin to GATEWAY_WEBHOOK_TARGETS, or use one that is there.",
)
WEAKER_POLICY = _code("weaker_policy", 422, _D, "Ask for values no weaker than the operator's, or null for those.")
WEBHOOK_NOT_FOUND = _code("webhook_not_found", 404, _D, "Check the id; GET /tenants/{tenant}/webhooks lists them.")
TOO_MANY_WEBHOOKS = _code("too_many_webhooks", 409, _D, "Delete webhooks that are not used.")
CROSS_SITE = _code(
    "cross_site", 403, _D, "Send it from this gateway's own pages, or from a program that sends no Origin header."
)
RATE_LIMITED = _code(
    "rate_limited", 429, _D, "Wait for the time in Retry-After, then send the request again.", retryable=True
)
BAD_HOST = _code("bad_host", 400, _D, "Send one Host header, with a name that the operator allows.")
HEAD_TOO_LARGE = _code("head_too_large", 431, _D, "Send fewer or shorter headers, and a shorter path.")
HEAD_TIMEOUT = _code("head_timeout", 408, _D, "Send the request line and all headers at once.")
READ_TIMEOUT = _code("read_timeout", 408, _D, "Read the answer as it arrives; this one was cut off.")
BAD_REQUEST = _code("bad_request", 400, _D, "Compare the request with the OpenAPI page at /docs.")
NOT_FOUND = _code("not_found", 404, _D, "Check the path; GET /adapters lists the adapters, /docs the routes.")
METHOD_NOT_ALLOWED = _code("method_not_allowed", 405, _D, "Check the method; /docs lists the routes.")
SHARE_TAKEN = _code(
    "share_taken",
    429,
    _D,
    "Wait until other requests of yours have ended; the free rest is reserved for other callers.",
    retryable=True,
)
TOO_MANY_FOLLOWERS = _code(
    "too_many_followers",
    429,
    _D,
    "Ask for the version itself, or try again when fewer clients watch uploads.",
    retryable=True,
)

# upload: bytes as they arrive
SOURCE_UNAVAILABLE = _code(
    "source_unavailable", 502, _U, "Try again later, or upload the files; if it stays so, tell the operator."
)
BAD_SOURCE = _code(
    "bad_source", 400, _U, "Write hf://org/repository@revision or s3://bucket/prefix; docs/importing.md has the forms."
)
SOURCE_NOT_ALLOWED = _code(
    "source_not_allowed",
    403,
    _U,
    "Ask the operator to allow it (GATEWAY_IMPORT_SOURCES; servers: GATEWAY_IMPORT_HOSTS), or upload the files.",
)
SOURCE_NOT_FOUND = _code(
    "source_not_found",
    404,
    _U,
    "Check the source's name, revision and folder; adapter_config.json and adapter_model.safetensors must be there.",
)
SOURCE_FORBIDDEN = _code(
    "source_forbidden",
    403,
    _U,
    "Ask the operator for a credential that may read this source, or upload the files; check its name, too.",
)
SOURCE_CHANGED = _code("source_changed", 409, _U, "Import it again; the source changed while it was read.")
SOURCE_BROKEN = _code(
    "source_broken",
    502,
    _U,
    "Tell whoever runs the source: it sent something else than it announced. Or upload the files.",
)
SOURCE_TIMEOUT = _code("source_timeout", 504, _U, "Try again when the source answers faster, or upload the files.")
BAD_MULTIPART = _code(
    "bad_multipart", 400, _U, "Send multipart/form-data with the parts name, config, weights and, if any, signature."
)
MISSING_PART = _code("missing_part", 400, _U, "Send all three parts: name, config (adapter_config.json) and weights.")
UNEXPECTED_PART = _code("unexpected_part", 400, _U, "Send only the parts name, config and weights, each once.")
TOO_LARGE = _code("too_large", 413, _U, "Make the upload smaller, or ask the operator for a higher limit.")
UNSUPPORTED_ENCODING = _code("unsupported_encoding", 415, _U, "Send the body without Content-Encoding.")
UPLOAD_TIMEOUT = _code("upload_timeout", 408, _U, "Send the body faster.")
UPLOAD_INCOMPLETE = _code("upload_incomplete", 400, _U, "Send it again; the body ended early.")
TOO_MANY_UPLOADS = _code(
    "too_many_uploads", 429, _U, "Wait until other uploads have ended, then try again.", retryable=True
)
NO_SPACE = _code("no_space", 507, _U, "The operator must free disk space; try again later.", retryable=True)
DIGEST_MISMATCH = _code("digest_mismatch", 422, _U, "Check the announced SHA-256 and send the bytes again.")
BAD_SIGNATURE = _code(
    "bad_signature",
    422,
    _U,
    "Sign the two files as they are sent, by a key that the operator trusts for your tenant: `model_signing sign key`.",
)
SIGNATURE_REQUIRED = _code(
    "signature_required", 422, _U, "Send the file that `model_signing sign key` writes in the part `signature`."
)
BAD_NAME = _code(
    "bad_name", 400, _U, "Use 1 to 63 characters of A-Z a-z 0-9 . _ - and begin with a letter or digit: my-adapter.v2"
)
RESERVED_NAME = _code("reserved_name", 409, _U, "Choose another name; the gateway reserves this one.")
NAME_TAKEN = _code(
    "name_taken",
    409,
    _U,
    "Use another name; this one belongs to another owner, or differs from an existing name only in case.",
)

# validate: is it a LoRA adapter for this model?
BAD_CONFIG = _code("bad_config", 400, _V, "Send the adapter_config.json that PEFT's save_pretrained wrote.")
UNSUPPORTED_CONFIG = _code(
    "unsupported_config",
    422,
    _V,
    "Train a plain LoRA: no DoRA, bias or modules_to_save; docs/adapters.md lists the accepted fields.",
)
BAD_SCALING = _code("bad_scaling", 422, _V, "Use a lora_alpha above 0 and within the operator's limit for scaling.")
BAD_SAFETENSORS = _code(
    "bad_safetensors", 400, _V, "Send the adapter_model.safetensors that PEFT wrote; pickles are not accepted."
)
BAD_DTYPE = _code("bad_dtype", 422, _V, "Save the weights as float32, float16 or bfloat16.")
BAD_TENSOR_NAME = _code(
    "bad_tensor_name", 422, _V, "Name each tensor base_model.model.<module>.lora_A.weight or .lora_B.weight."
)
UNKNOWN_MODULE = _code("unknown_module", 422, _V, "Adapt only linear modules that the served model's reference has.")
UNPAIRED_TENSOR = _code("unpaired_tensor", 422, _V, "Send both lora_A and lora_B for each module.")
WRONG_SHAPE = _code("wrong_shape", 422, _V, "Train the adapter on the served model itself; GET /v1/models names it.")
RANK_TOO_HIGH = _code(
    "rank_too_high", 422, _V, "Train with a smaller r, or ask the operator for a higher max_lora_rank."
)
NOT_FINITE = _code("not_finite", 422, _V, "Send weights that are finite in the serving dtype, also after scaling.")
EMPTY_ADAPTER = _code("empty_adapter", 422, _V, "Send a file that holds LoRA tensors; this one holds none.")
WRONG_BASE = _code("wrong_base", 422, _V, "Name the served model in base_model_name_or_path.")

# screen: results of the measurement
REJECTED = _code(
    "rejected", 422, _S, "Read the report for the modules and the reasons; train without the harmful data."
)
UNSCORABLE = _code(
    "unscorable", 422, _S, "Do not adapt this module: it cannot be scored, and the operator's policy refuses that."
)
BAD_NUMBERS = _code(
    "bad_numbers",
    422,
    _S,
    "Send factors that do not cancel; the engine's rounding would compute another update than was measured.",
)
SCREENING_TIMEOUT = _code(
    "screening_timeout",
    422,
    _S,
    "Adapt fewer modules, or ask the operator for more time; screening took longer than allowed.",
)
SCREENING_KILLED = _code(
    "screening_killed", 422, _S, "Make the adapter smaller; measuring it exceeded the limit of memory or time."
)
BAD_REFERENCE = _code(
    "bad_reference", 500, _S, "The operator must rebuild the reference: python -m app reference build."
)
SCREENING_FAILED = _code("screening_failed", 500, _S, "Try again; the log has the details.", retryable=True)
RESCREEN_FAILED = _code(
    "rescreen_failed", 422, _P, "Change the adapter; the rest did not pass after pruning, and nothing was stored."
)

# store
STORE_FAILED = _code("store_failed", 500, _T, "The operator must check the store directory.", retryable=True)
STORE_BUSY = _code(
    "store_busy", 503, _T, "Try again later; another process holds this store or is writing to it.", retryable=True
)
STORE_AWAY = _code("store_away", 503, _T, "Try again soon; the catalogue's database does not answer.", retryable=True)
ADAPTER_NOT_FOUND = _code("adapter_not_found", 404, _T, "Check the name; GET /adapters lists the existing names.")
VERSION_NOT_FOUND = _code(
    "version_not_found", 404, _T, "Check the number; GET /adapters/{name} lists the existing versions."
)
VERSION_NOT_READY = _code(
    "version_not_ready", 409, _T, "Choose a version that was screened and stored; no other can become active."
)
BAD_WEIGHTS = _code("bad_weights", 422, _T, 'Send per cents that add up to 100, by version: {"3": 95, "4": 5}.')
NO_TRAFFIC = _code("no_traffic", 404, _T, "Begin a roll-out first: PUT /adapters/{name}/traffic.")
ORIGINAL_NOT_KEPT = _code(
    "original_not_kept", 409, _T, "Upload it again; the operator can keep uploads with GATEWAY_KEEP_ORIGINALS."
)
QUOTA_EXCEEDED = _code(
    "quota_exceeded",
    403,
    _T,
    "Delete adapters that are not used, or ask the operator for more: GET /tenants/{tenant}/limits.",
)
NOT_SIGNED = _code("not_signed", 404, _T, "Ask the operator for statements: they need a key in GATEWAY_SIGNING_KEY.")
BAD_STATEMENT = _code(
    "bad_statement", 422, _T, "Do not serve these files; ask who sent them for a statement about these bytes."
)
RESCREENING = _code("rescreening", 429, _T, "Wait until the other rescreening has ended.", retryable=True)

# evaluate: behaviour on canaries
BAD_BATTERY = _code(
    "bad_battery", 422, Stage.EVALUATE, "Correct the line that the message names; docs/canaries.md has the format."
)
CANARIES_FAILED = _code(
    "canaries_failed",
    422,
    Stage.EVALUATE,
    "Train without the data that teaches it; the report counts by category the requests that it should have refused.",
)
CANARIES_TIMEOUT = _code(
    "canaries_timeout",
    503,
    Stage.EVALUATE,
    "Upload it again when the engine is less busy; it was not asked all canaries in the time allowed.",
    retryable=True,
)
CANARIES_UNUSABLE = _code(
    "canaries_unusable",
    503,
    Stage.EVALUATE,
    "Replace the battery, which the served model itself does not refuse, or the judge, if the served model cannot judge; "
    "python -m app canaries check shows both.",
)

# load and serve
MODEL_MISMATCH = _code(
    "model_mismatch",
    500,
    _L,
    "The operator must serve the reference's aligned checkpoint, or set GATEWAY_TRUST_MODEL=true if the "
    "difference is intended.",
)
ENGINE_UNAVAILABLE = _code(
    "engine_unavailable", 503, _L, "Try again soon; GET /ready shows the state of the engine.", retryable=True
)
LOAD_FAILED = _code(
    "load_failed", 502, _L, "Read the engine's message in the report; the engine refused the adapter.", retryable=True
)
MODEL_NOT_FOUND = _code("model_not_found", 404, _R, "Check the name; GET /v1/models lists the models.")
VERSION_UNLOADED = _code(
    "version_unloaded", 404, _R, "Ask for a newer version, or load this one again: POST /adapters/{name}/rollback?to=N"
)
NOT_OFFERED = _code(
    "not_offered", 404, _R, "Ask the operator for an engine that serves this route; /v1/chat/completions is served."
)
MODEL_MISSING = _code("model_missing", 400, _R, "Name an adapter or the served model in `model`.")
INVALID_REQUEST = _code(
    "invalid_request", 400, _R, "Correct the field that `param` names; docs/api.md lists what is taken."
)
REQUEST_TOO_LARGE = _code("request_too_large", 413, _R, "Send fewer or shorter messages.")
SCHEMA_TOO_COSTLY = _code(
    "schema_too_costly",
    400,
    _R,
    "Simplify the schema at the place that `param` names: shorter patterns, fewer different lengths and references.",
)
ENGINE_REFUSED = _code("engine_refused", 400, _R, "Correct the request; the engine's reason is in the message.")
UPSTREAM_FAILED = _code("upstream_failed", 502, _R, "Try again; the engine broke off the answer.", retryable=True)
STOPPING = _code(
    "stopping", 503, _D, "Try again: this gateway is being stopped, and another one will answer.", retryable=True
)
INTERNAL = _code(
    "internal_error",
    500,
    _D,
    "Tell the operator; the fault is the gateway's, and its log has the details.",
    retryable=True,
)

CODES: Final[dict[str, Code]] = dict(error_code.TABLE)
"""The whole table by name; docs/api.md and the metrics are generated from it."""


class GatewayError(Exception):
    """Base of all errors: a row of the table and a message for this occurrence."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        remedy: str | None = None,
        details: tuple[Fault, ...] = (),
    ) -> None:
        """retry_after: seconds after which retrying helps, if known. remedy: in place of the code's hint. details: every
        fault found, the first one being this error's own; empty if it is the only kind looked for. Later `ignored` may be
        set: the names of the fields that were left out of the request, as a header's value."""
        self.code = code
        self.retry_after = retry_after
        self.message = printable(message)
        self.param = None if param is None else printable(param)
        self.remedy = None if remedy is None else printable(remedy)
        self.details = details
        self.ignored = ""
        super().__init__(f"{code.name}: {self.message}")

    @property
    def hint(self) -> str:
        """Sentence on what to do."""
        return self.remedy or self.code.hint

    @property
    def recorded(self) -> str:
        """Message to keep with a version, followed by the remedy if it has one of its own; see `recall`."""
        return f"{self.message.rstrip('.')}{BEFORE_REMEDY}{self.remedy}" if self.remedy else self.message


BEFORE_REMEDY: Final = ". To do: "
"""Separator of message and remedy in a recorded error."""

RECORDED_LIMIT: Final = 2 * MESSAGE_LIMIT + len(BEFORE_REMEDY)
"""Most characters of a recorded error."""

TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's error types by status, for statuses that are not simply invalid_request_error or server_error."""


def envelope(error: GatewayError) -> dict[str, dict[str, Any]]:
    """Return OpenAI's error object, for responses and for streams; the hint follows the message."""
    status = error.code.status
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = f"{error.message.rstrip('.')}. {error.hint}"
    fields: dict[str, Any] = {"message": message, "type": kind, "param": error.param, "code": error.code.name}
    if error.details:
        fields["details"] = [asdict(fault) for fault in error.details]
    return {"error": fields}


class Refused(GatewayError):
    """Error that the caller must fix (4xx)."""


class Unavailable(GatewayError):
    """Error that is not the caller's fault (5xx)."""


def recall(code: Code, recorded: str, details: tuple[Fault, ...] = ()) -> GatewayError:
    """Return the error that was recorded with a version: Refused, or Unavailable for a server's code."""
    message, mark, remedy = recorded.rpartition(BEFORE_REMEDY)
    if not mark:
        message, remedy = recorded, ""
    return (Refused if code.status < 500 else Unavailable)(
        code, message, param=details[0].where or None if details else None, remedy=remedy or None, details=details
    )
