"""Ollama's interface: newline-separated JSON, names as Ollama writes them, nanoseconds."""
