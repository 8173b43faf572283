"""POST /tokenize and /detokenize, GET /tokenizer_info: as vLLM has them and lm-eval asks for them.

The model's name may be left out: lm-eval's tokenizer has none to say. Then it is the server's
default.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.errors import NotFoundError
from insula.server import state
from insula.server.errors import RefusalError
from insula.server.generation import answering, generation
from insula.server.openai.embeddings import Id
from insula.server.schema import Body, read
from insula.server.wire import Wire


class TokenizeBody(Body):
    """A text; return_token_strs: also what each token is."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Ids."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    tokens: list[Id]


async def tokenize(request: Request) -> Response:
    """Ids of a text, as a completion of it would have them."""
    body = await read(request, TokenizeBody, state.of(request).limits)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, _model(request, body.model)) as job:
            llm = job.llm.llm
            ids = llm.tokenize(body.prompt, add_special=body.add_special_tokens)
            document: dict[str, Any] = {
                "count": len(ids),
                "max_model_len": job.info.n_ctx,
                "tokens": ids,
            }
            if body.return_token_strs:
                document["token_strs"] = [
                    llm.tokenizer.token_bytes(i).decode(errors="replace") for i in ids
                ]
            await wire.whole(document)

    return answering(request, "openai", work)


async def detokenize(request: Request) -> Response:
    """The text of ids."""
    body = await read(request, DetokenizeBody, state.of(request).limits)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, _model(request, body.model)) as job:
            llm = job.llm.llm
            most = llm.tokenizer.vocab_size
            if body.tokens and max(body.tokens) >= most:
                message = f"tokens: found {max(body.tokens)}; allowed: 0 to {most - 1}"
                raise RefusalError(400, message, code="invalid_value", param="tokens")
            await wire.whole({"prompt": llm.detokenize(body.tokens)})

    return answering(request, "openai", work)


async def tokenizer_info(request: Request) -> Response:
    """Of the model in the query's `model`, else the default."""
    name = _model(request, request.query_params.get("model"))

    async def work(wire: Wire) -> None:
        async with generation(request, wire, name) as job:
            llm = job.llm.llm
            tokenizer = llm.tokenizer

            def shown(token: int | None) -> str | None:
                if token is None:
                    return None
                return tokenizer.token_bytes(token).decode(errors="replace")

            await wire.whole(
                {
                    "model": job.name,
                    "vocab_size": tokenizer.vocab_size,
                    "model_max_length": job.info.n_ctx,
                    "bos_token": shown(tokenizer.bos_id),
                    "bos_token_id": tokenizer.bos_id,
                    "eos_token": shown(tokenizer.eos_id),
                    "eos_token_id": tokenizer.eos_id,
                    "pad_token": shown(tokenizer.eos_id),
                    "add_bos_token": tokenizer.add_bos,
                    "chat_template": llm.template_source,
                }
            )

    return answering(request, "openai", work)


def _model(request: Request, name: str | None) -> str:
    if name is not None:
        return name
    default = state.of(request).catalogue.default
    if default is None:
        raise NotFoundError("no model is the default here: name one (model)")
    return default.name


#: For the OpenAPI document.
BODIES = {"tokenize": TokenizeBody, "detokenize": DetokenizeBody}
