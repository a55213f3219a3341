"""Process that strangers' tensors are read in: client (the gateway's end), worker (the other), protocol (both)."""
