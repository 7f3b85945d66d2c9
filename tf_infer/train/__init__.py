"""STAGE: change weights. May import: tasks, config, errors."""
