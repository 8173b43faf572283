"""Insula: language models on hardware you own."""
