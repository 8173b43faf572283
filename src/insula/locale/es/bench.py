"""Lo que dice insula bench, en español."""

TEXTS = {
    "at_least_one": "{option} debe ser al menos 1, no {value}",
    "working": "midiendo",
    "threads": "hilos",
    "prefill": "lectura de {count} tokens, tokens/s",
    "decode": "generación de {count} tokens, tokens/s",
    "median": "MEDIANA",
    "low": "MÍNIMO",
    "high": "MÁXIMO",
    "beyond_context": "en el contexto del modelo caben {limit} tokens; {prompt} de lectura (-p) y {new} de escritura (-n) son {total}",
}
