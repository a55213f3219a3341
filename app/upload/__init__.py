"""Upload reception: an untrusted, bounded stream becomes one sealed file with its digest, in a private quarantine.

    headers → receive ── chunks ──► FormReader ── parts ──► name · config (memory), weights (quarantine) → SealedUpload

This package does not read the content of the parts: validate does. It uses no web framework: its input is an async
iterator of bytes and a mapping of headers.
"""
