"""`tf-infer`: one file a command.

A command's module, and all that it needs, is imported only when it is called.
"""
