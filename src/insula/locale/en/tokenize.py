"""What insula tokenize says, in English."""

TEXTS = {
    "no_text": "give a text, or pipe one in",
    "summary": "{tokens} tokens, {characters} characters",
}
