"""Conversations that chat templates meet, by name: what the goldens are rendered from."""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": "Why is the sky blue?"}
ANSWER = {"role": "assistant", "content": "Because air scatters short waves more."}
AGAIN = {"role": "user", "content": "And at dusk?"}
SYSTEM = {"role": "system", "content": "You answer in one sentence."}


def function(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER = function(
    "get_weather",
    'The weather in a place, <b>now</b> & "soon" - it\'s free.',
    {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "City, e.g. Alcalá de Henares"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        },
        "required": ["place"],
    },
)
CLOCK = function("get_time", "The time.", {"type": "object", "properties": {}})
SEARCH = function(
    "search",
    "Looks things up.",
    {
        "type": "object",
        "properties": {
            "queries": {"type": "array", "items": {"type": "string"}, "description": "What for"},
            "limit": {"type": "integer", "default": 10},
            "exact": {"type": "boolean", "default": False},
            "since": {"type": "string", "nullable": True},
            "score": {"type": "number"},
            "kinds": {"type": "array", "items": {"type": "object", "properties": {}}},
            "matrix": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            "either": {
                "oneOf": [
                    {"type": "string", "description": "a name"},
                    {"type": "number", "default": 3},
                ]
            },
            "where": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": ["string", "null"]}},
                "required": ["x"],
            },
        },
        "required": ["queries", "where"],
    },
)


def call(name: str, arguments: Any, identifier: str = "abc123def", **more: Any) -> dict[str, Any]:
    entry = {
        "id": identifier,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return {"role": "assistant", "tool_calls": [entry], **more}


def result(content: str, identifier: str = "abc123def") -> dict[str, Any]:
    return {
        "role": "tool",
        "name": "get_weather",
        "tool_call_id": identifier,
        "content": content,
    }


PLACE = {"place": "Toledo", "unit": "celsius"}
DONE = {"role": "assistant", "content": "It is 31 degrees in Toledo."}
TWO_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        call("get_weather", PLACE)["tool_calls"][0],
        call("get_time", {}, "zyx987wvu")["tool_calls"][0],
    ],
}

#: name -> arguments of a render: messages, and whatever else.
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [USER, ANSWER, AGAIN]},
    "system_turns": {"messages": [SYSTEM, USER, ANSWER, AGAIN, ANSWER, USER]},
    "ends_with_answer": {"messages": [SYSTEM, USER, ANSWER]},
    "many_turns": {"messages": [SYSTEM, *([USER, ANSWER] * 8), AGAIN]},
    "text": {
        "messages": [
            {"role": "system", "content": "  Señor \u2603 Quijote\n\n"},
            {
                "role": "user",
                "content": "\n Ça va? 你好 👩‍🚀 <b>&amp;</b> \"x\" 'y' \\n {{ z }} {% if %}\t ",
            },
            {"role": "assistant", "content": "  \n{# no #} done  \n"},
            {"role": "user", "content": "e\u0301 \u200d \x7f"},
        ]
    },
    "special_tokens": {
        "messages": [{"role": "user", "content": "<|im_end|></s><|eot_id|>[/INST]<end_of_turn>"}]
    },
    "empty_content": {"messages": [{"role": "user", "content": ""}]},
    "empty_system": {"messages": [{"role": "system", "content": ""}, USER]},
    "nothing": {"messages": []},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "system_late": {"messages": [USER, SYSTEM, ANSWER, AGAIN]},
    "two_users": {"messages": [USER, AGAIN]},
    "starts_with_answer": {"messages": [ANSWER, USER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
    "no_content": {"messages": [{"role": "user"}]},
    "tools": {"messages": [USER], "tools": [WEATHER]},
    "tools_system": {"messages": [SYSTEM, USER], "tools": [WEATHER, CLOCK]},
    "tools_none": {"messages": [USER], "tools": []},
    "tools_schema": {"messages": [SYSTEM, USER], "tools": [SEARCH]},
    "tool_call": {"messages": [USER, call("get_weather", PLACE)], "tools": [WEATHER]},
    "tool_call_null_content": {
        "messages": [USER, call("get_weather", PLACE, content=None)],
        "tools": [WEATHER],
    },
    "tool_call_text_arguments": {
        "messages": [USER, call("get_weather", '{"place": "Toledo"}', content=None)],
        "tools": [WEATHER],
    },
    "tool_call_long_id": {
        "messages": [USER, call("get_weather", PLACE, "call_0123456789", content="")],
        "tools": [WEATHER],
    },
    "tool_result": {
        "messages": [SYSTEM, USER, call("get_weather", PLACE, content=""), result('{"c": 31}')],
        "tools": [WEATHER],
    },
    "tool_result_answer": {
        "messages": [
            USER,
            call("get_weather", PLACE, content=""),
            result("31 °C <sunny>"),
            DONE,
            AGAIN,
        ],
        "tools": [WEATHER],
    },
    "tool_result_null_content": {
        "messages": [USER, call("get_weather", '{"place": 1}', content=None), result("x"), DONE],
    },
    "tool_calls_parallel": {
        "messages": [USER, TWO_CALLS, result("31"), result("12:00", "zyx987wvu"), DONE, AGAIN],
        "tools": [WEATHER, CLOCK],
    },
    "tool_without_call": {"messages": [USER, result("31")], "tools": [WEATHER]},
    "reasoning": {
        "messages": [
            USER,
            ANSWER | {"reasoning_content": "Rayleigh.\nFourth power."},
            AGAIN,
            ANSWER | {"reasoning_content": "\nLonger path.\n"},
        ]
    },
    "reasoning_other_names": {
        "messages": [USER, ANSWER | {"reasoning": "Rayleigh."}, AGAIN, DONE | {"thinking": "Mie."}]
    },
    "reasoning_empty": {"messages": [USER, ANSWER | {"reasoning_content": ""}, AGAIN]},
    "reasoning_in_content": {
        "messages": [
            USER,
            {"role": "assistant", "content": "<think>\nRayleigh.\n</think>\n\nAir scatters."},
            AGAIN,
            {"role": "assistant", "content": "<think>\nPath.\n</think>\n\nA longer way."},
        ]
    },
    "reasoning_tool_call": {
        "messages": [
            USER,
            call("get_weather", PLACE, content="", reasoning_content="I should look."),
            result("31"),
        ],
        "tools": [WEATHER],
    },
    "thinking_off": {"messages": [USER], "enable_thinking": False},
    "thinking_on": {"messages": [SYSTEM, USER], "enable_thinking": True},
    "no_think": {"messages": [{"role": "system", "content": "Short. /no_think"}, USER, ANSWER]},
    "effort": {"messages": [USER], "reasoning_effort": "high", "model_identity": "You are a lamp."},
    "builtin_tools": {"messages": [USER], "builtin_tools": ["browser", "python"]},
    "builtin_tools_llama": {
        "messages": [SYSTEM, USER],
        "builtin_tools": ["brave_search", "code_interpreter"],
        "tools": [WEATHER],
        "tools_in_user_message": False,
        "date_string": "1 Jan 1605",
    },
    "ipython": {
        "messages": [
            USER,
            call("get_weather", PLACE, content=""),
            {"role": "ipython", "content": {"output": "31"}},
        ],
        "tools": [WEATHER],
    },
    "documents": {"messages": [USER], "documents": [{"title": "Sky", "text": "Blue."}]},
}
