"""TEXT -> ANSWER: one family a file; strings at the edges, a dense core between them.

Promise: every input and output has the row axis first, a row's answer does not depend on its
neighbours or on padding, and the core sees only shapes of the grid.
May import: text, networks, decoding, constraints, token_bytes, config, manifest, errors, stages.
"""
