"""Lo que dice insula recommend, en español."""

TEXTS = {
    "nothing": "ningún modelo conocido cabe aquí con un contexto de {ctx} tokens; usa un --ctx menor, o cierra otros programas",
    "memory": "MEMORIA",
    "most_ctx": "CONTEXTO MÁXIMO",
    "speed": "TOKENS/S",
    "too_large": "{memory}, demasiado",
    "estimates": "para un contexto de {ctx} tokens, o aquel con el que se entrenó el modelo; ~ es una estimación para un fichero Q4_K_M que aún no está aquí",
    "measured": "tokens/s con el contexto lleno y vacío: el {share} de lo que permitirían {rate} GB/s, medidos ahora; un procesador ocupado o lento al calcular hace menos",
}
