"""`tf-infer`: one file a command; a command's module, and all it needs, is imported only when it is called."""
