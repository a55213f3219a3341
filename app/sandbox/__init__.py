"""Sandboxed process that reads untrusted tensors: client (the gateway's side), worker (the process), protocol (both)."""
