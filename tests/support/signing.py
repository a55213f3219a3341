"""Keys that sign statements, made by the openssl program as docs/statements.md says."""

import subprocess
from pathlib import Path

ED25519 = ("-algorithm", "ed25519")
P256 = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def signing_key(path: Path, kind: tuple[str, ...] = ED25519) -> Path:
    """Write a private key to `path`, and its public key beside it as .pub; return `path`."""
    subprocess.run(["openssl", "genpkey", *kind, "-out", path], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", path, "-pubout", "-out", path.with_suffix(".pub")], check=True)
    return path
