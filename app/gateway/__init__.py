"""Use cases: everything the gateway does with an adapter, one file each, independent of HTTP."""
