"""STAGE: same answers, less time or memory: a plan is applied to a task and gives a new task.

May import: tasks, networks, text, config, manifest, processor, errors.
"""
