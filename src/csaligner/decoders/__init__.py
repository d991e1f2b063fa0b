"""Pictures from image embeddings: unCLIP decoders and our own small one."""
