"""What insula search says, in English."""

TEXTS = {
    "nothing": "nothing found for {words!r}; insula search --online WORDS asks the hub",
    "parameters": "PARAMETERS",
    "about_size": "AS Q4_K_M",
    "training": "TRAINED ON (AS PUBLISHED)",
    "tokens": "{count} T tokens",
    "how_to_pull": "sizes are estimates; insula pull NAME fetches one, insula recommend says what fits here",
    "needs_words": "--online needs words to search for",
    "downloads": "DOWNLOADS",
    "gated": "wants a login",
}
