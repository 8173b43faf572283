"""Lo que dice insula serve, en español."""

TEXTS = {
    "no_extra": "el servidor necesita más paquetes (falta {module}); consíguelos con: pip install 'insula[server]'",
    "loading": "cargando {model}",
    "loaded": "{model} está cargado ({seconds} s)",
    "unloaded": "{model} se ha descargado de la memoria",
    "failed": "no se pudo cargar {model}: {reason}",
    "listening": "Insula escucha en {url}",
    "models": "modelos: {names}",
    "no_models": "aún no hay ningún modelo aquí; consigue uno con: insula pull smollm2:135m",
    "try_it": "pregúntale con los clientes de OpenAI, Ollama o Anthropic, o así:",
    "stop_it": "Ctrl-C lo detiene.",
    "stopped": "detenido",
}
