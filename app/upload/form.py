"""Destinations of an upload's parts: name, config and signature in bounded memory, weights in the quarantine."""

from collections.abc import Callable

from app.domain.errors import BAD_NAME, TOO_LARGE, Refused
from app.domain.names import AdapterName
from app.upload.limits import SIGNATURE, UploadLimits
from app.upload.multipart import FormReader, Sink
from app.upload.quarantine import SealedFile, UnsealedFile


class _Bytes:
    """Sink that keeps a part in memory."""

    def __init__(self, part: str, cap: int, done: Callable[[bytearray], None]) -> None:
        self._part, self._cap, self._done = part, cap, done
        self._data = bytearray()

    def write(self, data: memoryview) -> None:
        if len(self._data) + len(data) > self._cap:
            raise Refused(TOO_LARGE, f"{self._part}: more than {self._cap} bytes", param=self._part)
        self._data += data

    def finish(self) -> None:
        self._done(self._data)


class _File:
    """Sink that writes the weights to the quarantine."""

    def __init__(self, file: UnsealedFile, cap: int) -> None:
        self._file, self._cap = file, cap

    def write(self, data: memoryview) -> None:
        if self._file.size + len(data) > self._cap:
            raise Refused(TOO_LARGE, f"weights: more than {self._cap} bytes", param="weights")
        self._file.write(data)

    def finish(self) -> None:
        """Do nothing: the file is sealed later, when the whole body has been checked."""


class Form:
    """The parts of an upload while they arrive. Blocking; used by one thread at a time.

    name, config, signature: set when their parts end; signature: None if there is no such part. weights: the file being
    written, for the caller to discard.
    """

    def __init__(self, boundary: bytes, limits: UploadLimits, weights: UnsealedFile) -> None:
        self.name = ""
        self.config = bytearray()
        self.signature: bytes | None = None
        self.weights = weights
        sinks: dict[str, Sink] = {
            "name": _Bytes("name", limits.max_name_bytes, self._set_name),
            "config": _Bytes("config", limits.max_config_bytes, self._set_config),
            "weights": _File(weights, limits.max_weights_bytes),
            SIGNATURE: _Bytes(SIGNATURE, limits.max_signature_bytes, self._set_signature),
        }
        self._reader = FormReader(boundary, sinks, limits, optional={SIGNATURE})

    def feed(self, batch: bytearray) -> None:
        """Parse the next bytes of the body. Raises GatewayError."""
        self._reader.feed(bytes(batch))

    def seal(self) -> SealedFile:
        """Check that the body is complete, and seal the weights. Raises GatewayError."""
        self._reader.finish()
        return self.weights.seal()

    def _set_name(self, data: bytearray) -> None:
        try:
            self.name = AdapterName.parse(data.decode("utf-8")).text
        except UnicodeDecodeError as error:
            raise Refused(BAD_NAME, "the name is not UTF-8", param="name") from error

    def _set_signature(self, data: bytearray) -> None:
        self.signature = bytes(data)

    def _set_config(self, data: bytearray) -> None:
        self.config = data
