"""What insula bench says, in English."""

TEXTS = {
    "at_least_one": "{option} must be at least 1, not {value}",
    "working": "measuring",
    "threads": "threads",
    "prefill": "prefill of {count} tokens, tokens/s",
    "decode": "decode of {count} tokens, tokens/s",
    "median": "MEDIAN",
    "low": "LOWEST",
    "high": "HIGHEST",
    "beyond_context": "the model's context holds {limit} tokens; {prompt} to read (-p) and {new} to write (-n) are {total}",
}
