"""What one does with a model that converses: answers, calls of tools, sessions. `LLM` has these
methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from insula.engine.backends import require
from insula.engine.options import sampling_params
from insula.engine.request import Request, TextEngine, Tokenizer
from insula.engine.stream import Stream
from insula.errors import UnsupportedError
from insula.given import wanted_form
from insula.types import Completion, Constraint, Message, ModelInfo, SamplingParams

if TYPE_CHECKING:
    from insula.chat.prompt import ChatFormat, ChatPrompt, Overflow
    from insula.chat.session import ChatSession
    from insula.chat.templates import ChatTemplate
    from insula.hub.defaults import ModelDefaults

#: What the methods take beside the options of sampling.
_NAMES = (
    "template",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "constraint",
    "response_format",
    "grammar",
    "template_arguments",
    "overflow",
    "salt",
    "adapter",
)


class ChatMethods:
    """Needs a loaded engine and what is known of the model."""

    model_info: ModelInfo
    _engine: TextEngine
    _defaults: ModelDefaults

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._engine.tokenizer

    @property
    def n_ctx(self) -> int:
        """Most tokens of prompt and completion together; 0 where a server does not say."""
        return self._engine.n_ctx

    @property
    def template_source(self) -> str | None:
        """The chat template that holds where none is given; None where there is none, or the
        backend has it to itself."""
        if "conversation" in self._engine.takes:
            return None
        return self._defaults.template or self.tokenizer.chat_template

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: ChatTemplate | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        constraint: Constraint | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        overflow: Overflow = "error",
        salt: str = "",
        adapter: str | None = None,
        **options: Any,
    ) -> Completion:
        """The assistant's answer to a conversation.

        messages: each with role and content, a text or a list of text parts. template: a
            format's name, Jinja, or None for the model's own; template_arguments (such as
            enable_thinking) are given to it, and the report says which it never looks at.
        tools: functions that the model may call, as OpenAI writes them. tool_choice: "auto" (the
            default: the model chooses), "none", "required", or {"type": "function", "function":
            {"name": ...}}; parallel_tool_calls: whether one answer may have several calls, at
            most 8 (None: if the model's template knows calls). Calls are held to the tools' schemas
            while they are written, and come in the completion's `tool_calls` with finish_reason
            "tool_calls"; what was cut off inside one is "length".
        constraint, response_format, grammar: the answer's form, as in `generate`; an answer that
            calls tools is not held to it.
        overflow: "error", "stop" or "drop_oldest" (whole turns, never the system's message;
            the report says how many).
        What the model marks as reasoning is in the completion's `reasoning`, not in its text.
        Raises what `generate` raises, and TemplateError.
        """
        stream = self.chat_stream(
            messages,
            params,
            template=template,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            constraint=constraint,
            response_format=response_format,
            grammar=grammar,
            template_arguments=template_arguments,
            overflow=overflow,
            salt=salt,
            adapter=adapter,
            **options,
        )
        for _ in stream:
            pass
        assert stream.completion is not None
        return stream.completion

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: ChatTemplate | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        constraint: Constraint | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        overflow: Overflow = "error",
        salt: str = "",
        adapter: str | None = None,
        **options: Any,
    ) -> Stream:
        """As `chat`, chunk by chunk; reasoning comes in the chunks' `reasoning`, not in text, and
        each call of a tool whole, in the chunk that completes it."""
        from insula.chat import calling, whole
        from insula.chat import prompt as chat_prompt
        from insula.chat.reply import Reply

        self._check_adapter(adapter)
        form = self._form(constraint, response_format, grammar)
        if whole.wanted(self._engine, messages):
            if form is not None or tool_choice is not None or parallel_tool_calls is not None:
                require(self._engine.name, "constraints")
            handle = whole.submit(
                self._engine,
                messages,
                sampling_params(self._base(params), options, others=_NAMES),
                template=template,
                tools=tools,
                arguments=template_arguments,
                overflow=overflow,
                salt=salt,
                notes=self.model_info.notes,
            )
            return Stream(handle)
        messages = self._with_defaults(chat_prompt.plain_messages(messages))
        chat_prompt.check_overflow(overflow)
        sampling = sampling_params(self._base(params), options, others=_NAMES)
        chat_format = self._chat_format(
            template, tools, template_arguments, choice=tool_choice, parallel=parallel_tool_calls
        )
        called = chat_format.calling
        assert called is not None
        prompt, sampling, notes = chat_prompt.fitted(
            messages,
            chat_format.prompt,
            sampling,
            count=chat_format.count,
            n_ctx=self.n_ctx,
            overflow=overflow,
        )
        calls = None if called.choice is None else called.form
        reply = Reply(chat_format.template.source, prompt.text, calls=calls)
        request = Request(
            ids=prompt.ids,
            params=sampling,
            constraint=calling.held_to(
                form, called, thinking=reply.thinking, prompt=prompt.text, tokenizer=self.tokenizer
            ),
            salt=salt,
            adapter=adapter,
            continues=False,
            skip_special=not reply.shows_special,
            notes=(*self.model_info.notes, *chat_format.notes, *notes),
            dropped_turns=prompt.dropped_turns,
            dropped_tokens=prompt.dropped_tokens,
        )
        return Stream(self._engine.submit(request), on_chunk=reply.chunk, on_end=reply.whole)

    def count_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> int:
        """Tokens that a conversation is as `chat` would ask it. Raises ConfigError, TemplateError,
        UnsupportedError (the backend has the template to itself)."""
        from insula.chat import prompt as chat_prompt

        if "conversation" in self._engine.takes:
            require(self._engine.name, "tokenizer")
        given = self._with_defaults(chat_prompt.plain_messages(messages))
        chat_format = self._chat_format(None, tools, template_arguments, choice=None, parallel=None)
        return len(chat_format.prompt(given).ids)

    def chat_session(
        self,
        *,
        system: str | None = None,
        template: ChatTemplate | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        constraint: Constraint | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        overflow: Overflow = "error",
        params: SamplingParams | None = None,
        salt: str = "",
        adapter: str | None = None,
        **options: Any,
    ) -> ChatSession:
        """A conversation whose history stays in the KV cache; see `chat.session.ChatSession`.

        params, options: the defaults of its turns. The rest is as in `chat`, for every answer.
        """
        from insula.chat.session import ChatSession

        self._check_adapter(adapter)
        form = self._form(constraint, response_format, grammar)
        chat_format = None
        if "conversation" not in self._engine.takes:
            chat_format = self._chat_format(
                template,
                tools,
                template_arguments,
                choice=tool_choice,
                parallel=parallel_tool_calls,
            )
            chat_format.template.prepare()
        elif template is not None or tools or template_arguments or overflow != "error":
            raise UnsupportedError(
                f"the {self._engine.name} backend's sessions cannot take template, tools, "
                "template_arguments or an overflow: the template is the server's",
                backend=self._engine.name,
            )
        return ChatSession(
            self._engine,
            chat_format,
            system=self._defaults.system if system is None else system,
            opening=self._defaults.messages,
            params=sampling_params(self._base(params), options, others=("system", *_NAMES)),
            constraint=form,
            overflow=overflow,
            salt=salt,
            adapter=adapter,
            notes=self.model_info.notes,
            model=self.model_info.name,
        )

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        template: ChatTemplate | str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """The conversation as `chat` gives it to the model, ready for the assistant's answer: its
        text and its ids. Options as in `chat`; what is too long for the context is refused by
        whoever runs it.

        Raises ConfigError, TemplateError, UnsupportedError (the backend has the template itself).
        """
        from insula.chat.prompt import plain_messages

        if "conversation" in self._engine.takes:
            require(self._engine.name, "tokenizer")
        given = self._with_defaults(plain_messages(messages))
        return self._chat_format(
            template, tools, template_arguments, choice=None, parallel=None
        ).prompt(given)

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None:
            require(self._engine.name, "adapters")

    def _form(
        self,
        constraint: Constraint | None,
        response_format: Mapping[str, Any] | None,
        grammar: str | None,
    ) -> Constraint | None:
        """The form that an answer is to have. Raises UnsupportedError for a backend that can hold
        it to none."""
        form = wanted_form(constraint, response_format, grammar)
        if form is not None:
            require(self._engine.name, "constraints")
        return form

    def _base(self, params: SamplingParams | None) -> SamplingParams:
        return self._defaults.meaning.sampling if params is None else params

    def _with_defaults(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation after what the model's own SYSTEM and MESSAGEs say."""
        given = list(messages)
        head: list[Message] = []
        if given[0]["role"] in ("system", "developer"):
            head = [given.pop(0)]
        elif self._defaults.system is not None:
            head = [{"role": "system", "content": self._defaults.system}]
        return [*head, *self._defaults.messages, *given]

    def _chat_format(
        self,
        template: ChatTemplate | str | None,
        tools: Sequence[Mapping[str, Any]] | None,
        arguments: Mapping[str, Any] | None,
        *,
        choice: object,
        parallel: object,
    ) -> ChatFormat:
        from insula.chat.calling import calling
        from insula.chat.prompt import ChatFormat, chat_template

        chosen = chat_template(
            self.tokenizer, self._defaults.template if template is None else template
        )
        called = calling(chosen.source, tools, tool_choice=choice, parallel=parallel)
        if called.choice is not None:
            require(self._engine.name, "constraints")
        return ChatFormat(
            tokenizer=self.tokenizer,
            template=chosen,
            tools=called.for_template,
            arguments={} if arguments is None else arguments,
            calling=called,
        )
