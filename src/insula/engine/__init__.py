"""Whose turn is it: requests, pages of KV cache, the scheduler and the engine that steps them."""
