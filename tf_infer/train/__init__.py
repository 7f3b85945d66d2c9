"""STAGE: change weights. May import: tasks, metrics, pictures, config, errors."""
