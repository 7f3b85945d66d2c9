"""CodecConfig -> TextCodec."""

from __future__ import annotations

from pathlib import Path

from tf_infer.config import (
    BytePairConfig,
    BytesConfig,
    CodecConfig,
    SentencePieceConfig,
    WordPieceConfig,
)
from tf_infer.errors import ConfigError
from tf_infer.text.contracts import TextCodec


def build(config: CodecConfig, folder: Path) -> TextCodec:
    """Build the codec that `config` describes.

    Args:
        config: which kind, and its options.
        folder: where the files lie that the kind's configuration names; `BytesConfig` needs none.

    Raises:
        CheckpointError: a file is missing or is not what it should be.
        ConfigError: `config` is of no known kind.
    """
    if isinstance(config, BytesConfig):
        from tf_infer.text.bytes import BytesCodec
        return BytesCodec(config)
    if isinstance(config, WordPieceConfig):
        from tf_infer.text.wordpiece import WordPieceCodec
        return WordPieceCodec(config, Path(folder))
    if isinstance(config, SentencePieceConfig):
        from tf_infer.text.sentencepiece import SentencePieceCodec
        return SentencePieceCodec(config, Path(folder))
    if isinstance(config, BytePairConfig):
        from tf_infer.text.bytepair import BytePairCodec
        return BytePairCodec(config, Path(folder))
    raise ConfigError(f"codec: expected a codec's configuration, got {type(config).__name__}.")
