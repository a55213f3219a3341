"""Resolver of adapters: vLLM calls it for a model name that it does not have."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from lora_gateway_vllm.artefact import FILES, Artefact, digest_of, may_exist
from lora_gateway_vllm.cache import Cache
from lora_gateway_vllm.errors import Damaged, Full, Trouble
from lora_gateway_vllm.gateway import Gateway
from lora_gateway_vllm.mounted import copied
from lora_gateway_vllm.settings import Settings
from lora_gateway_vllm.signed import objection

UNKNOWN_LIMIT: Final = 10_000
"""Unknown names that are remembered: strangers choose them, so they must not fill the memory."""

logger = init_logger("vllm.lora_gateway")  # under vLLM's own, or nobody would see it


class GatewayResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is skipped: mypy sees no class
    """Answers versions that the gateway publishes, and nothing else. Makes and opens nothing before it is first asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gateway = Gateway(settings)
        self._cache: Cache | None = None
        self._unknown: OrderedDict[str, float] = OrderedDict()  # name → when it is asked about again, monotonic seconds
        self._bringing: dict[str, asyncio.Task[Path]] = {}

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter's request, its files verified and on this machine; None for what the gateway does not know.

        Raises fastapi's HTTPException where neither can be said: 502, 503 or 507 (errors.py).
        """
        try:
            return await self._resolve(lora_name)
        except Trouble as trouble:
            logger.warning("LoRA gateway: %s", trouble)
            from fastapi import HTTPException

            raise HTTPException(trouble.status, str(trouble)) from trouble

    async def _resolve(self, name: str) -> LoRARequest | None:
        if not may_exist(name) or self._is_known_unknown(name):
            return None
        artefact = await self._gateway.resolve(name)
        if artefact is None:
            self._remember_unknown(name)
            return None
        keys = self._settings.public_keys
        if keys and (why := objection(artefact.statement, artefact.digest, keys)):
            raise Damaged(f"{artefact.engine_name}: {why}")
        if artefact.bytes > self._settings.artefact_bytes:
            raise Full(f"{artefact.engine_name} has {artefact.bytes} bytes, more than this engine takes")
        home = await self._brought(artefact)
        number = int(artefact.digest[:12], 16) + 1  # vLLM gives it one of its own
        return LoRARequest(lora_name=artefact.engine_name, lora_int_id=number, lora_path=str(home))

    async def close(self) -> None:
        """Give cache and connections back. vLLM never asks for it."""
        await self._gateway.close()
        if self._cache is not None:
            self._cache.close()

    async def _brought(self, artefact: Artefact) -> Path:
        """One fetch for all who wait for it, and to its end even when they have gone: never half a directory."""
        task = self._bringing.get(artefact.digest)
        if task is None:
            task = self._bringing[artefact.digest] = asyncio.create_task(self._bring(artefact))
            task.add_done_callback(lambda done: self._over(artefact.digest, done))
        return await asyncio.shield(task)

    def _over(self, digest: str, task: asyncio.Task[Path]) -> None:
        self._bringing.pop(digest, None)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would report it when nobody waits any more

    async def _bring(self, artefact: Artefact) -> Path:
        if self._cache is None:  # made at once: two who come together must not open it twice
            self._cache = Cache(self._settings.cache, self._settings.cache_bytes)
        cache = self._cache
        found = await asyncio.to_thread(cache.find, artefact)
        if found is not None:
            return found
        with cache.staged(artefact) as folder:
            hashes = {name: await self._copy(artefact, name, folder / name) for name in FILES}
            if digest_of(hashes) != artefact.digest:
                raise Damaged(f"artefact {artefact.digest[:12]}: what arrived is not what its digest promises")
            home = await asyncio.to_thread(cache.keep, artefact, folder)
        logger.info("LoRA gateway: %s fetched, %d bytes", artefact.engine_name, artefact.bytes)
        return home

    async def _copy(self, artefact: Artefact, name: str, target: Path) -> str:
        """One file into the cache; its SHA-256."""
        size, store = artefact.sizes[name], self._settings.store
        try:
            if store is not None:
                return await asyncio.to_thread(copied, store / artefact.digest / name, target, size)
            with target.open("xb") as file:
                return await self._gateway.fetch(artefact.digest, name, size, file.write)
        except OSError as error:
            raise Full(f"artefact {artefact.digest[:12]}: {name}: {error.strerror}") from error

    def _is_known_unknown(self, name: str) -> bool:
        until = self._unknown.get(name)
        return until is not None and time.monotonic() < until

    def _remember_unknown(self, name: str) -> None:
        self._unknown[name] = time.monotonic() + self._settings.forget_s
        self._unknown.move_to_end(name)
        while len(self._unknown) > UNKNOWN_LIMIT:
            self._unknown.popitem(last=False)
