"""Answers held to a schema, and calls of tools, by a model too small to be trusted with either.

python examples/06_tools.py [MODEL]
"""

import json
import sys

from insula import LLM

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def get_weather(city: str) -> str:
    return f"21 degrees and sunny in {city}"


with LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m", download=True) as llm:
    answer = llm.chat(
        [{"role": "user", "content": "Extract as JSON: Ana is 31 years old."}],
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}},
        max_tokens=60,
        temperature=0,
    )
    if answer.finish_reason == "stop":  # "length": cut off, and no JSON
        print(json.loads(answer.text))

    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = llm.chat(
        messages, tools=[WEATHER], tool_choice="required", max_tokens=100, temperature=0
    )
    if answer.finish_reason == "tool_calls":
        called = []
        results = []
        for call in answer.tool_calls:
            print(f"the model calls {call.name}({call.arguments})")
            function = {"name": call.name, "arguments": call.arguments}
            called.append({"id": call.id, "type": "function", "function": function})
            result = get_weather(**json.loads(call.arguments))
            results.append({"role": "tool", "tool_call_id": call.id, "content": result})
        messages += [{"role": "assistant", "content": None, "tool_calls": called}, *results]
        final = llm.chat(
            messages, tools=[WEATHER], tool_choice="none", max_tokens=40, temperature=0
        )
        print(final.text)
