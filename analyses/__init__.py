"""The parts of analyse.py: values against true returns, embeddings before and after alignment, frames."""
