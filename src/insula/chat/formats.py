"""Chat formats by name, for models that come without a template of their own.

Owns their Jinja sources, each after the documented prompt format of the model that it is named for
(the comment beside it says which). A system message is kept wherever the original format has a
place for it; where it has none it opens the first user turn. What a format has no place for (tools,
other roles, a system message in the middle) is an error, never left out. `bos_token` and
`eos_token` are the model's.
"""

from __future__ import annotations

_NO_TOOLS = (
    "{%- if tools -%}{{ raise_exception('this chat format has no place for tools') }}{%- endif -%}"
)
_KNOWN_ROLES = (
    "{%- for message in turns if message['role'] not in ['user', 'assistant'] -%}"
    "{{ raise_exception('this chat format has no place for the role ' ~ message['role']"
    " ~ ' here; it takes one system message at the start, user and assistant') }}"
    "{%- endfor -%}"
)
_SYSTEM_APART = (
    "{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system'"
    " else '' -%}"
    "{%- set turns = messages[1:] if messages and messages[0]['role'] == 'system' else messages -%}"
    + _NO_TOOLS
    + _KNOWN_ROLES
)

#: name -> Jinja source.
FORMATS: dict[str, str] = {
    # OpenAI's ChatML, as Qwen, SmolLM, Yi and many fine-tunes use it.
    "chatml": (
        _NO_TOOLS + "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # meta-llama/llama, generation.py: chat_completion.
    "llama2": (
        _SYSTEM_APART + "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{ bos_token + '[INST] ' }}"
        "{%- if loop.first and system -%}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{%- endif -%}"
        "{{ message['content'].strip() + ' [/INST]' }}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
        "{%- endif -%}{%- endfor -%}"
    ),
    # meta-llama/llama3, tokenizer.py: ChatFormat.
    "llama3": (
        _NO_TOOLS + "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'].strip() + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # ai.google.dev/gemma/docs/core/prompt-structure; no system role.
    "gemma": (
        _SYSTEM_APART + "{{ bos_token }}{%- for message in turns -%}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user')"
        " + '\n' }}"
        "{%- if loop.first and system -%}{{ system.strip() + '\n\n' }}{%- endif -%}"
        "{{ message['content'].strip() + '<end_of_turn>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    ),
    # microsoft/Phi-3-mini-4k-instruct, model card.
    "phi3": (
        _SYSTEM_APART + "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # HuggingFaceH4/zephyr-7b-beta, model card.
    "zephyr": (
        _SYSTEM_APART + "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # lm-sys/FastChat, docs/vicuna_weights_version.md: the prompt of version 1.1.
    "vicuna": (
        _SYSTEM_APART
        + "{{ bos_token + (system or 'A chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s "
        "questions.') }}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}{{ ' USER: ' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{ ' ASSISTANT: ' + message['content'] + eos_token }}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
    ),
    # tatsu-lab/stanford_alpaca, README: the prompt without input, turn after turn.
    "alpaca": (
        _SYSTEM_APART + "{{ bos_token + (system or 'Below is an instruction that "
        "describes a task. Write a response that appropriately completes the request.') }}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{ '\n\n### Instruction:\n' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{ '\n\n### Response:\n' + message['content'] + eos_token }}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '\n\n### Response:\n' }}{%- endif -%}"
    ),
    # mistralai/Mistral-7B-Instruct-v0.2, model card.
    "mistral": (
        _SYSTEM_APART + "{{ bos_token }}{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{ '[INST] ' + (system + '\n\n' if loop.first and system else '')"
        " + message['content'] + ' [/INST]' }}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{ ' ' + message['content'] + eos_token }}"
        "{%- endif -%}{%- endfor -%}"
    ),
}
