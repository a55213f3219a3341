"""Use cases: everything the gateway does with an adapter, one file each; HTTP stays outside."""
