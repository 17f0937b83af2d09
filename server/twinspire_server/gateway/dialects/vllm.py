"""vLLM's extension of OpenAI's API: `POST /v1/embeddings` with `messages` instead of `input`.

https://docs.vllm.ai/en/latest/models/pooling_models.html, section on the embeddings API.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from twinspire.text import Truncation
from twinspire_server.gateway.dialects.dialect import Dialect
from twinspire_server.gateway.dialects.fields import ContentPart
from twinspire_server.gateway.dialects.openai import OpenAiForm
from twinspire_server.gateway.dialects.responses import openai_error
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Input, Part, Text, mixed


class Vllm(Dialect):
    """vLLM's chat embeddings: one conversation is one vector, the normalised sum of its texts' and images'."""

    name = "vllm"

    def add_routes(self, router: APIRouter) -> None:
        """Add nothing: /v1/embeddings is shared, and /health is Infinity's."""

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return OpenAI's form."""
        return openai_error(error)


class Message(BaseModel):
    """A message of a conversation. Two-tower models take no instructions: only a user's are embedded."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("(text)")] | Annotated[list[ContentPart], Field(min_length=1), Tag("(parts)")],
        Discriminator(lambda value: "(text)" if isinstance(value, str) else "(parts)"),
    ]

    def parts(self, place: str) -> list[Part]:
        """Return the texts and images of the message."""
        if isinstance(self.content, str):
            return [Text(self.content, f"{place}.content")]
        return [part.to_part(f"{place}.content[{position}]") for position, part in enumerate(self.content)]


def _batch_or_one(value: Any) -> str:  # noqa: ANN401 - JSON
    return "(batch)" if isinstance(value, list) and value and isinstance(value[0], list) else "(one)"


_Conversation = Annotated[list[Message], Field(min_length=1)]


class VllmBody(OpenAiForm):
    """A request with a conversation, or with a list of conversations."""

    dialect: ClassVar[Dialect] = Vllm()

    messages: Annotated[
        Annotated[_Conversation, Tag("(one)")] | Annotated[list[_Conversation], Tag("(batch)")],
        Discriminator(_batch_or_one),
    ]
    truncate_prompt_tokens: Literal[-1] | None = Field(
        None, description="-1 cuts a text to the model's context; without it a longer one is an error."
    )

    @classmethod
    def matches(cls, document: dict[str, Any]) -> bool:
        """Return whether there are messages."""
        return "messages" in document

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        return EmbedRequest(
            inputs=tuple(self._inputs()),
            model=self.model,
            truncation=Truncation.ERROR if self.truncate_prompt_tokens is None else Truncation.END,
            dimensions=self.dimensions,
            name="messages",
        )

    def _inputs(self) -> list[Input]:
        first = self.messages[0]
        if isinstance(first, Message):
            return [_input(self.messages, "messages")]  # type: ignore[arg-type] # all are
        return [
            _input(conversation, f"messages[{position}]")  # type: ignore[arg-type] # all are lists
            for position, conversation in enumerate(self.messages)
        ]


def _input(conversation: list[Message], name: str) -> Input:
    parts = [part for position, message in enumerate(conversation) for part in message.parts(f"{name}[{position}]")]
    return mixed(tuple(parts))
