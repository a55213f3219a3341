"""A bounded stream from a stranger becomes one sealed, digested file in a private quarantine.

    headers → receive ── chunks ──► FormReader ── parts ──► name · config (memory), weights (quarantine) → SealedUpload

Nothing here looks inside the parts: that is validate's work. No web framework either: an async iterator of bytes and
a mapping of headers come in.
"""
