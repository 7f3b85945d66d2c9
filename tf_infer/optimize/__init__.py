"""STAGE: same answers, less time or memory: a plan is applied to a task and gives a new task.

May import: tasks, networks, config, manifest, errors.
"""
