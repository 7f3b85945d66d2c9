"""What journeys of generation share: a decoder of bytes, never trained, exported in a minute."""

from __future__ import annotations

from pathlib import Path

CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def export_writer(folder: Path, *, name: str = "writer", capacity: int = 200, longest: int = 32,
                  engine: bool = False) -> Path:
    """Export a decoder whose text is noise, greedy by default.

    Its chats are their messages joined; its constraint "answer" lets it say yes or no.

    Args:
        folder: where the model's folder goes.
        name: of the model and its folder.
        capacity: most new tokens.
        longest: most bytes of a prompt that are read, the last ones.
        engine: with a LiteRT engine in float32.

    Returns:
        The model's folder, with version 1.
    """
    from tf_infer.cli.proof import make_golden
    from tf_infer.config import (
        CausalLMConfig,
        ChoicesConfig,
        GenerationDefaults,
        PackingConfig,
        ShapeGrid,
        SmallTransformerConfig,
    )
    from tf_infer.equality import Tolerance
    from tf_infer.export.saved_model import save
    from tf_infer.tasks.build import build
    from tf_infer.verify.parity import verify
    from tf_infer.verify.predictors import SessionPredictor

    tokenizer = folder / f"{name}-tokenizer"
    tokenizer.mkdir()
    (tokenizer / "chat_template.jinja").write_text(CHAT)
    # Few tokens by default: golden samples are told op by op, which takes long.
    task = build(CausalLMConfig(
        name=name, capacity=capacity, defaults=GenerationDefaults(max_new_tokens=2),
        network=SmallTransformerConfig(width=16, layers=1, heads=2, hidden=16,
                                       max_positions=longest + capacity),
        packing=PackingConfig(max_tokens=longest, end=False, truncation="left"),
        constraints={"answer": ChoicesConfig(choices=("yes", "no"))},
        grid=ShapeGrid(rows=(1, 2), tokens=(longest,))), tokenizer_dir=tokenizer)
    golden = make_golden(task, [b"ab"], max_rows=1)

    def extras(extra: Path) -> None:
        if engine:
            from tf_infer.cli.engine import write_engine
            from tf_infer.optimize.litert import EngineSettings

            write_engine(task, extra, EngineSettings(
                precision="float32", rows=(1, 2, 4, 8), chunks=(16,)), [b"ab"], lambda line: None)

    save(task, folder / name, name=name, golden=golden, extras=extras,
         check=lambda version: verify({"session": lambda: SessionPredictor(version)}, golden[:1],
                                      Tolerance()))
    return folder / name
