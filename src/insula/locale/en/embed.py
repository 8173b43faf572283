"""What insula embed says, in English."""

TEXTS = {
    "no_text": "give texts, or pipe lines in",
    "empty_line": "line {line} is empty; each line is a text",
    "both": "choose one of --rank and --classify",
    "truncated": "{count} of {total} texts were cut to {limit} tokens",
    "summary": "{texts} texts, {tokens} tokens, {dimensions} dimensions, {seconds:.2f} s",
}
