"""A Hub of your own: the protocol of huggingface.co, served from a folder on this machine."""
