"""User texts, one module per room that speaks."""
