"""What insula serve says, in English."""

TEXTS = {
    "no_extra": "the server needs more packages ({module} is missing); get them with: pip install 'insula[server]'",
    "loading": "loading {model}",
    "loaded": "{model} is loaded ({seconds} s)",
    "unloaded": "{model} was unloaded",
    "failed": "{model} could not be loaded: {reason}",
    "listening": "Insula listens on {url}",
    "models": "models: {names}",
    "no_models": "no model is here yet; get one with: insula pull smollm2:135m",
    "try_it": "ask it with OpenAI's, Ollama's or Anthropic's clients, or:",
    "stop_it": "Ctrl-C stops it.",
    "stopped": "stopped",
}
