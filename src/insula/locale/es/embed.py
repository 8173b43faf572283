"""Lo que dice insula embed, en español."""

TEXTS = {
    "no_text": "da textos, o envía líneas por una tubería",
    "empty_line": "la línea {line} está vacía; cada línea es un texto",
    "both": "elige una de --rank y --classify",
    "truncated": "{count} de {total} textos se cortaron a {limit} tokens",
    "summary": "{texts} textos, {tokens} tokens, {dimensions} dimensiones, {seconds:.2f} s",
}
