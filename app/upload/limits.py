"""Limits on one upload and on all uploads together, with units and reasons."""

import math
from dataclasses import dataclass, fields
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

PARTS: Final = ("name", "config", "weights")
"""Names of the parts of an upload: each exactly once, in any order, and no others but SIGNATURE."""

SIGNATURE: Final = "signature"
"""Name of a part that may come, once."""

MAX_BOUNDARY_BYTES: Final = 70
"""Most bytes of a multipart boundary (RFC 2046 §5.1.1)."""

DELIMITER_BYTES: Final = MAX_BOUNDARY_BYTES + len(b"\r\n----\r\n")
"""Bytes of the longest line between two parts."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits on the cost of one upload and on the number of concurrent uploads.

    max_weights_bytes: bytes of the weights part. Rank 64 on every linear module of a 7B model is 0.6 GiB in float32.
    max_config_bytes: bytes of the config part. PEFT writes about 1 KiB; full-name patterns for 448 modules take 30 KiB.
    max_signature_bytes: bytes of the signature part. It grows with the number of files that a bundle covers.
    max_name_bytes: bytes of the name part. A name has 63 at most; the larger limit lets a long name be refused with the
        rules for names, and only a flood with "too large".
    max_part_header_bytes: bytes of one part's headers. Clients send about 150.
    max_preamble_bytes: bytes of line breaks before the first boundary (nothing else is allowed there), and of anything
        after the last. Clients send none, or one line break.
    min_rate_bytes_s: bytes per second the client must sustain, averaged over each window of waiting for it. Half a
        megabit: slower than any connection suitable for gigabytes.
    rate_window_s: seconds of waiting over which the rate is averaged; a shorter stall is tolerated.
    idle_timeout_s: seconds without a byte. Ends a connection whose client has disappeared.
    max_concurrent: uploads at the same time, from the first byte until the sealed files are closed; times
        `max_body_bytes` it bounds the quarantine's disk.
    free_disk_floor_bytes: bytes that must stay free on the quarantine's file system, for catalogue, logs, artefacts.
    """

    max_weights_bytes: int = 2 * GIB
    max_config_bytes: int = 64 * KIB
    max_signature_bytes: int = 64 * KIB
    max_name_bytes: int = MIB
    max_part_header_bytes: int = 4 * KIB
    max_preamble_bytes: int = KIB
    min_rate_bytes_s: float = 64 * KIB
    rate_window_s: float = 10.0
    idle_timeout_s: float = 15.0
    max_concurrent: int = 4
    free_disk_floor_bytes: int = 512 * MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name.startswith("max_")):
                raise ValueError(f"upload limit {field.name} must be finite and positive, not {value}")
        if self.rate_window_s == 0 or self.idle_timeout_s == 0:
            raise ValueError("upload limits rate_window_s and idle_timeout_s must be above 0")

    @property
    def max_framing_bytes(self) -> int:
        """Most bytes of a body outside the parts' content: headers, boundaries, preamble and epilogue."""
        parts = len((*PARTS, SIGNATURE))
        lines = (parts + 1) * DELIMITER_BYTES
        return parts * self.max_part_header_bytes + lines + 2 * self.max_preamble_bytes

    @property
    def max_body_bytes(self) -> int:
        """Most bytes of a whole body; a larger Content-Length is refused before a byte is read."""
        in_memory = self.max_config_bytes + self.max_signature_bytes + self.max_name_bytes
        return self.max_weights_bytes + in_memory + self.max_framing_bytes
