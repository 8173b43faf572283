"""What insula recommend says, in English."""

TEXTS = {
    "nothing": "no model that is known here fits with a context of {ctx} tokens; take a smaller --ctx, or close other programs",
    "memory": "MEMORY",
    "most_ctx": "LONGEST CONTEXT",
    "speed": "TOKENS/S",
    "too_large": "{memory}, too much",
    "estimates": "for a context of {ctx} tokens, or what the model was trained for; ~ is an estimate for a Q4_K_M file that is not here yet",
    "measured": "tokens/s from a full context to an empty one: {share} of what {rate} GB/s, measured now, would allow; a processor that is busy or slow at computing does less",
}
