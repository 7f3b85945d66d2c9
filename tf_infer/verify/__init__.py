"""STAGE: prove that two paths agree. May import: client, manifest, config, errors."""
