"""Text to picture: from prompts to embeddings to a decoder, and the training of our own decoder."""
