"""Texts and prompts become token batches."""
