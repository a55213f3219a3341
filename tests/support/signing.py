"""Keys that sign statements, made by the openssl program as docs/statements.md says."""

import subprocess
from pathlib import Path


def signing_key(path: Path) -> Path:
    """Write a private key to `path`, and its public key beside it as .pub; return `path`."""
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    subprocess.run(["openssl", "pkey", "-in", path, "-pubout", "-out", path.with_suffix(".pub")], check=True)
    return path
