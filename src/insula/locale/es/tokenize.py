"""Lo que dice insula tokenize, en español."""

TEXTS = {
    "no_text": "da un texto, o envíalo por una tubería",
    "summary": "{tokens} tokens, {characters} caracteres",
}
