"""What the chat's room says to a person, in English."""

TEXTS = {
    "no_such_file": "there is no file {path}",
    "not_a_file": "{path} is not a file",
    "file_too_long": "{path} is longer than {limit} MB, which no saved chat is",
    "not_a_chat": "{path} is not a saved chat",
    "other_version": "{path} is a saved chat of version {found}; this program reads version {version}",
    "turn_too_long": "this turn alone is too long; shorten it",
    "answer_too_long": "max_tokens is {max_tokens}, and beside this turn there is room for {free}; lower it",
    "dropped": "the context holds {n_ctx} tokens: the oldest {turns} turn(s) ({tokens} tokens) were dropped",
    "clipped": "max_tokens {asked} cut to {left}: the context holds {n_ctx} tokens",
    "tools_described": "the chat template has no format of tool calls that is known here: the tools were described in words, and calls are written between <tool_call> and </tool_call>",
    "unused": "the chat template does not use {what}: the model has not seen it",
    "go_template": "the model's TEMPLATE is in Ollama's (Go) language and is not used ({reason}); the template in the model's own file is, if it has one",
}
