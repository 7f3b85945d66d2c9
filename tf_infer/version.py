"""The version of tf_infer, once."""

__version__ = "0.1.0"
