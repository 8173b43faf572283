"""Lo que la conversación dice a una persona, en español."""

TEXTS = {
    "no_such_file": "no existe el fichero {path}",
    "not_a_file": "{path} no es un fichero",
    "file_too_long": "{path} supera los {limit} MB, y ninguna conversación guardada llega a tanto",
    "not_a_chat": "{path} no es una conversación guardada",
    "other_version": "{path} es una conversación guardada de la versión {found}; este programa lee la versión {version}",
    "turn_too_long": "este turno por sí solo es demasiado largo; acórtalo",
    "answer_too_long": "max_tokens es {max_tokens}, y junto a este turno solo caben {free}; redúcelo",
    "dropped": "en el contexto caben {n_ctx} tokens: se han olvidado los {turns} turnos más antiguos ({tokens} tokens)",
    "clipped": "max_tokens pasa de {asked} a {left}: en el contexto caben {n_ctx} tokens",
    "tools_described": "la plantilla de conversación no tiene un formato de llamadas a herramientas que se conozca aquí: las herramientas se han descrito con palabras, y las llamadas van entre <tool_call> y </tool_call>",
    "unused": "la plantilla de conversación no usa {what}: el modelo no lo ha visto",
    "go_template": "la TEMPLATE del modelo está en el lenguaje de Ollama (Go) y no se usa ({reason}); se usa la plantilla del propio fichero del modelo, si la tiene",
}
