"""OpenAI's interface, and what grew around it: rerank, score, tokenize."""
