"""A vLLM plugin: adapters that a LoRA gateway screened are found when they are asked for; nothing else is.

    settings   what the environment says                                settings.py
    gateway    name → artefact, and its bytes, over HTTP                gateway.py
    mounted    the same from a mounted store                            mounted.py
    cache      artefacts on this machine, verified, read-only, bounded  cache.py
    signed     statements about artefacts, verified by public keys      signed.py
    resolver   what vLLM asks                                           resolver.py
    closed     an ASGI middleware that shuts vLLM's own doors for code and adapters   closed.py

vLLM loads general plugins in every one of its processes, so this module imports nothing, and `register` only what vLLM
has imported already; files, locks and connections are made when the first adapter is asked for.
"""

NAME = "LoRA gateway"
"""Name of the resolver in vLLM's registry and log."""


def register() -> None:
    """Called by vLLM in each of its processes, once or several times. Raises ValueError when the settings are wrong."""
    import os

    from lora_gateway_vllm.settings import URL, Settings

    if URL not in os.environ:  # installed, and not asked for
        return
    settings = Settings.read(os.environ)

    from vllm.lora.resolver import LoRAResolverRegistry

    from lora_gateway_vllm.resolver import GatewayResolver

    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, GatewayResolver(settings))
