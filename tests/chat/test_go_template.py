"""Ollama's Go templates as Jinja: the prompts that models were trained on, and what is refused.

The templates are written here after each model's published prompt format; what they must give is
the built-in Jinja format's text, or is spelled out.
"""

from __future__ import annotations

import pytest

from insula.chat.formats import FORMATS
from insula.chat.go_jinja import translated
from insula.chat.go_template import is_go, parse
from insula.chat.prompt import usable
from insula.chat.templates import ChatTemplate
from insula.errors import TemplateError

USER = [{"role": "user", "content": "Hello, you."}]
SYSTEM = [{"role": "system", "content": "Be {{ brief }}."}, *USER]
TURNS = [
    *SYSTEM,
    {"role": "assistant", "content": "Hi.\n"},
    {"role": "user", "content": "{% x %} é 中 'quoted' \\n"},
]
PLAIN_TURNS = TURNS[1:]

LLAMA3 = (
    "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>{{ end }}"
    "{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>{{ end }}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}<|eot_id|>"
)
LLAMA3_MESSAGES = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}
{{- if or (ne .Role "assistant") (not $last) }}<|eot_id|>{{ end }}
{{- if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end -}}"""
CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
QWEN = """{{- if .Messages }}
{{- if or .System .Tools }}<|im_start|>system
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}

# Tools
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}
{{- else }}
{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ end }}{{ .Response }}{{ if .Response }}<|im_end|>{{ end }}"""
GEMMA = (
    "<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}<end_of_turn>\n"
    "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n"
)
PHI3 = """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""
MISTRAL = (
    "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }} [/INST] {{ .Response }}</s>"
)
MISTRAL_MESSAGES = """{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}[INST] {{ .Content }} [/INST]
{{- else if eq .Role "assistant" }} {{ .Content }}</s>
{{- end }}
{{- end }}"""
ZEPHYR = """{{- range .Messages -}}
<|{{ .Role }}|>
{{ .Content }}</s>
{{ end -}}<|assistant|>
"""


def rendered(source: str, messages: list[dict], **options) -> str:
    return ChatTemplate(translated(source)).render(messages, **options)


def wanted(name: str, messages: list[dict]) -> str:
    """The built-in format's text; the begin token is put first when it is encoded."""
    stripped = [{**m, "content": m["content"].strip()} for m in messages]
    kept = stripped if name in ("llama3", "gemma") else messages
    return ChatTemplate(FORMATS[name], bos_token="", eos_token="</s>").render(kept)


def given(name: str, messages: list[dict]) -> list[dict]:
    """Some formats strip what is said; Go's templates cannot."""
    if name in ("llama3", "gemma"):
        return [{**m, "content": m["content"].strip()} for m in messages]
    return messages


@pytest.mark.parametrize("messages", [USER, SYSTEM, TURNS, PLAIN_TURNS])
@pytest.mark.parametrize(
    ("source", "name"),
    [
        (LLAMA3, "llama3"),
        (LLAMA3_MESSAGES, "llama3"),
        (CHATML, "chatml"),
        (QWEN, "chatml"),
        (GEMMA, "gemma"),
        (PHI3, "phi3"),
        (ZEPHYR, "zephyr"),
    ],
)
def test_the_prompt_is_that_of_the_models_format(source, name, messages) -> None:
    assert rendered(source, given(name, messages)) == wanted(name, messages)


def test_mistrals() -> None:
    # The space before an answer is in the template, so also before the one to come.
    for messages in (USER, SYSTEM, TURNS):
        assert rendered(MISTRAL, messages) == wanted("mistral", messages) + " "
    assert rendered(MISTRAL_MESSAGES, PLAIN_TURNS) == wanted("mistral", PLAIN_TURNS)


def test_an_answer_that_is_begun_goes_on() -> None:
    begun = [*USER, {"role": "assistant", "content": "Once"}]
    assert rendered(CHATML, begun).endswith("<|im_start|>assistant\nOnce")
    assert rendered(QWEN, begun).endswith("<|im_start|>assistant\nOnce")
    assert rendered(LLAMA3_MESSAGES, begun).endswith("assistant<|end_header_id|>\n\nOnce")


def test_without_an_answer_to_come_every_turn_is_whole() -> None:
    text = rendered(CHATML, TURNS[:3], add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\nHi.\n<|im_end|>\n")
    assert text.count("<|im_start|>assistant") == 1


def test_one_role_twice_is_joined_as_ollama_joins() -> None:
    twice = [*USER, {"role": "user", "content": "And you?"}]
    joined = [{"role": "user", "content": "Hello, you.\n\nAnd you?"}]
    for source in (CHATML, QWEN, LLAMA3_MESSAGES):
        assert rendered(source, twice) == rendered(source, joined)
    systems = [SYSTEM[0], *USER, {"role": "system", "content": "B."}, *USER]
    assert rendered("{{ .System }}|{{ range .Messages }}{{ .Role }} {{ end }}", systems) == (
        "Be {{ brief }}.\n\nB.|system user system user "
    )
    assert rendered("[{{ .System }}|{{ .Prompt }}|{{ .Response }}]", systems) == (
        "[Be {{ brief }}.|Hello, you.|][B.|Hello, you.|"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a {{- .Prompt -}} \n b", "aHIb"),
        ("a {{ .Prompt }} \n b", "a HI \n b"),
        ("a\n{{- /* {{ no }} */ -}}\nb{{ .Prompt }}", "abHI"),
        ('{{ "}}" }}{{ `{{ \\n` }}{{ "\\"\\t\\u00e9\\x41" }}{{ .Prompt }}', '}}{{ \\n"\té' + "AHI"),
        ("{{ $x := .Prompt }}{{ $x }}{{ $x = .System }}-{{ $x }}", "HI-"),
        ("{{ $x := 1 }}{{ if .Prompt }}{{ $x = 2 }}{{ end }}{{ $x }}{{ .Prompt }}", "2HI"),
        (
            "{{ $x := 1 }}{{ if .Prompt }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}{{ .Prompt }}",
            "21HI",
        ),
        ("{{ with .Prompt }}<{{ . }}>{{ else }}none{{ end }}{{ .Prompt }}", "<HI>HI"),
        ("{{ with .System }}<{{ . }}>{{ else }}none{{ end }}{{ .Prompt }}", "noneHI"),
        ("{{ with $p := .Prompt }}{{ $p }}{{ . }}{{ $.Prompt }}{{ end }}", "HIHIHI"),
        ('{{ if eq .Prompt "a" "HI" }}yes{{ end }}{{ .Prompt }}', "yesHI"),
        ('{{ if and .Prompt (not .System) (ne .Prompt "x") }}yes{{ end }}{{ .Prompt }}', "yesHI"),
        ("{{ or .System .Prompt }}{{ .Prompt }}", "HIHI"),
        ("{{ if or .Tools .Suffix }}x{{ else }}y{{ end }}{{ .Prompt }}", "yHI"),
        ("{{ if and .Tools (frobnicate .Tools) }}x{{ end }}{{ .Prompt }}", "HI"),
        ("{{ range .Tools }}{{ template .X }}{{ else }}none{{ end }}{{ .Prompt }}", None),
        ("{{ range .Tools }}{{ .Function.Name }}{{ else }}none{{ end }}{{ .Prompt }}", "noneHI"),
        ("{{ if gt (len .Prompt) 1 }}long{{ end }}{{ .Prompt }}", "longHI"),
        ("{{ .Prompt | json }}{{ .Prompt }}", '"HI"HI'),
        ("{{ if true }}{{ true }}{{ end }}{{ 7 }}{{ .Prompt }}", "true7HI"),
        ("{{ .Prompt }}{% raw %}{# x #}", "HI{% raw %}{# x #}"),
    ],
)
def test_the_language(source, text) -> None:
    messages = [{"role": "user", "content": "HI"}]
    if text is None:
        with pytest.raises(TemplateError):
            translated(source)
        return
    assert rendered(source, messages) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ range .Messages }}{{ .Role }}={{ .Content }};{{ end }}", "user=a;assistant=b;user=c;"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ end }}", "0a1b2c"),
        ("{{ range .Messages }}{{ if eq .Role `user` }}{{ continue }}{{ end }}x{{ end }}", "x"),
        ("{{ range .Messages }}{{ .Content }}{{ break }}{{ end }}", "a"),
        ("{{ (index .Messages 1).Content }}{{ len .Messages }}", "b3"),
        ("{{ range slice .Messages 1 2 }}{{ .Content }}{{ end }}", "b"),
        ("{{ $n := 0 }}{{ range $i, $_ := .Messages }}{{ $n = $i }}{{ end }}{{ $n }}", "2"),
        ("{{ range .Messages }}{{ $c := .Role }}{{ range $.Messages }}{{ $c }}{{ end }}{{ end }}",
         "user" * 3 + "assistant" * 3 + "user" * 3),
        ("{{ with index .Messages 0 }}{{ .Role }}{{ end }}", "user"),
        ("{{ .Messages | len }}", "3"),
    ],
)  # fmt: skip
def test_over_messages(source, text) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert rendered(source, messages) == text


def test_thinking_is_asked_for_as_in_jinja() -> None:
    source = (
        "{{ .Prompt }}{{ if and .IsThinkSet (not .Think) }}/no_think{{ end }}"
        "{{ if .Think }}/think{{ end }}"
    )
    assert rendered(source, USER) == "Hello, you."
    assert rendered(source, USER, enable_thinking=False) == "Hello, you./no_think"
    assert rendered(source, USER, enable_thinking=True) == "Hello, you./think"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ .Prompt }}{{ template `x` }}", "'template'"),
        ("{{ define `x` }}{{ end }}{{ .Prompt }}", "'define'"),
        ("{{ .Wisdom }}", ".Wisdom"),
        ("{{ range .Messages }}{{ .Wisdom }}{{ end }}", ".Wisdom of a message"),
        ("{{ printf `%s` .Prompt }}", "'printf'"),
        ("{{ .Prompt.Upper }}", ".Upper of a text"),
        ("{{ range .Prompt }}{{ end }}", "range goes over text"),
        ("{{ .Messages }}", "prints messages"),
        ("{{ if .Prompt }}", "no end"),
        ("{{ end }}", "nothing is open"),
        ("{{ .Prompt", "ends within"),
        ("{{ .Prompt ! }}", "'! }}'"),
        ("{{ $x }}{{ .Prompt }}", "$x"),
        ("{{ 1.5 }}{{ .Prompt }}", "1.5"),
        ("{{ .Prompt .System }}", "not read"),
        ("{{ }}{{ .Prompt }}", "not read"),
        ("{{ (.Prompt }}", "not read"),
        ("{{ $x := 1 }}{{ $x = .Prompt }}", "a number, a text"),
        ("{{ if .Prompt }}" * 60 + "{{ end }}" * 60, "nested"),
        ("{{ .Prompt }}" + "x" * (1 << 18), "characters"),
        ("{{ " + "(" * 2000 + ".Prompt" + ")" * 2000 + " }}", "nested"),
    ],
)
def test_what_is_not_translated_is_named(source, says) -> None:
    with pytest.raises(TemplateError) as caught:
        translated(source)
    assert says in str(caught.value)
    template, notes = usable(source)
    if is_go(source):
        assert template is None
        assert says in notes[0]


def test_what_a_template_has_no_place_for() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    called = [*USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]
    for source in (CHATML, QWEN):
        with pytest.raises(TemplateError, match="no tools"):
            rendered(source, USER, tools=[tool])
        with pytest.raises(TemplateError, match="no tool calls"):
            rendered(source, called)
    with pytest.raises(TemplateError, match="the role tool"):
        rendered(CHATML, [*USER, {"role": "tool", "content": "4"}])
    assert "<tool_response>\n4\n" in rendered(QWEN, [*USER, {"role": "tool", "content": "4"}])


def test_jinja_and_formats_stay_as_they_are() -> None:
    for template in (None, "chatml", "{% for m in messages %}{{ m.content }}{% endfor %}"):
        assert usable(template) == (template, ())


def test_a_texts_own_braces_are_not_jinja() -> None:
    source = "{{ .Prompt }}}} {%- set x = 1 %} {{ `{{ 7 * 7 }}` }} \\x41 ' \r\n"
    assert rendered(source, USER) == "Hello, you.}} {%- set x = 1 %} {{ 7 * 7 }} \\x41 ' \n"


def test_long_conversations() -> None:
    many = [{"role": ("user", "assistant")[i % 2], "content": f"n{i}"} for i in range(601)]
    for source in (CHATML, QWEN, LLAMA3_MESSAGES):
        text = rendered(source, many)
        assert all(f"n{i}<" in text for i in range(601))


@pytest.mark.parametrize(
    ("template", "go"),
    [
        ("{{ .Prompt }}", True),
        ("{{- range .Messages }}{{ .Content }}{{ end }}", True),
        ("{{- if .System }}x{{ end }}", True),
        ("{{/* a comment */}}", True),
        ('{{ $last := "x" }}', True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{{ messages[0].content }}", False),
        ("{{- bos_token }}", False),
        ("{% if x %}{{ .5 }}{% endif %}", False),
        ("chatml", False),
    ],
)
def test_whose_template_language_it_is(template, go) -> None:
    assert is_go(template) is go


def test_a_template_that_is_only_text() -> None:
    assert [node.text for node in parse("plain")] == ["plain"]


THINKING = """{{- $lastUser := -1 -}}
{{- range $i, $m := .Messages -}}
{{- if eq $m.Role "user" }}{{ $lastUser = $i }}{{ end -}}
{{- end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
[{{ .Role }}]
{{- if and .Thinking (or $last (gt $i $lastUser)) }}<think>{{ .Thinking }}</think>{{ end -}}
{{ .Content }}
{{- if and $.IsThinkSet (eq $i $lastUser) }}
   {{- if $.Think -}}
      {{- " "}}/think
   {{- else -}}
      {{- " "}}/no_think
   {{- end -}}
{{- end }}
{{- if and (ne .Role "assistant") $last }}[assistant]
{{ if and $.IsThinkSet (not $.Think) -}}
<think></think>
{{ end -}}
{{ end }}
{{- end }}"""


def test_thoughts_stay_where_the_template_wants_them() -> None:
    asked = [*USER, {"role": "assistant", "content": "A", "reasoning_content": "why"}]
    assert rendered(THINKING, asked) == "[user]Hello, you.[assistant]<think>why</think>A"
    text = rendered(THINKING, [*asked, *USER], enable_thinking=False)
    assert text == (
        "[user]Hello, you.[assistant]A[user]Hello, you. /no_think[assistant]\n<think></think>\n"
    )


def nested_eq(depth: int) -> str:
    value = ".System"
    for _ in range(depth):
        value = f'(eq {value} "a" "b")' if value == ".System" else f"(eq {value} true false)"
    return "{{ if " + value + " }}x{{ end }}{{ .Prompt }}"


def test_comparisons_within_comparisons_stay_small() -> None:
    """The first operand is compared with each of the others; it is written once, so that no
    template can make one of a gigabyte out of a line."""
    sizes = [len(translated(nested_eq(depth))) for depth in (8, 9, 40)]
    per_level = sizes[1] - sizes[0]
    assert sizes[2] == sizes[0] + 32 * per_level
    assert rendered('{{ if eq .System "a" "b" }}x{{ end }}{{ .Prompt }}', USER) == "Hello, you."
    for system, wanted in (("a", "x"), ("b", "x"), ("c", "")):
        asked = [{"role": "system", "content": system}, *USER]
        source = '{{ if eq .System "a" "b" }}x{{ end }}{{ .Prompt }}'
        assert rendered(source, asked) == wanted + "Hello, you."
    assert rendered(nested_eq(3), SYSTEM) == "xHello, you."


@pytest.mark.parametrize(
    "source",
    [
        "{{ .System" + ".a" * 30000 + " }}",
        "{{ if .Tools" + ".a" * 30000 + " }}x{{ end }}{{ .Prompt }}",
        "{{ .System" + "|json" * 20000 + " }}",
        "{{ .System" + "|not" * 1000 + " }}",
    ],
)
def test_what_is_nested_too_deeply_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="nested too deeply"):
        translated(source)
    template, notes = usable(source)
    assert template is None
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{{ .Prompt }}{{ break }}", "break where no range is open"),
        ("{{ range .Messages }}{{ else }}{{ continue }}{{ end }}", "continue where no range"),
        ("{{ range .Messages }}a{{ else if .System }}b{{ end }}", "'if' after else"),
        ("{{ if .System }}a{{ end .System }}{{ .Prompt }}", "'end .System', which is not read"),
    ],
)
def test_what_go_refuses_is_refused(source: str, match: str) -> None:
    with pytest.raises(TemplateError, match=match):
        translated(source)
