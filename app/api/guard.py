"""The dependency that stands before every route but health."""

from typing import Annotated

from fastapi import Depends, Request

from app.api.context import Context, context


async def guarded(request: Request, ctx: Annotated[Context, Depends(context)]) -> None:
    """Raise Refused UNAUTHORIZED unless the caller holds a key. Runs before any byte of the body is read."""
    ctx.keys.check(request.headers.get("authorization"))
