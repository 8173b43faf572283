"""Lo que dice insula search, en español."""

TEXTS = {
    "nothing": "no hay nada para {words!r}; insula search --online PALABRAS pregunta al servidor",
    "parameters": "PARÁMETROS",
    "about_size": "EN Q4_K_M",
    "training": "ENTRENADO CON (SEGÚN SE PUBLICÓ)",
    "tokens": "{count} T tokens",
    "how_to_pull": "los tamaños son estimaciones; insula pull NOMBRE trae uno, insula recommend dice qué cabe aquí",
    "needs_words": "--online necesita palabras que buscar",
    "downloads": "DESCARGAS",
    "gated": "pide cuenta",
}
