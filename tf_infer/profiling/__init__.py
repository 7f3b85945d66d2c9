"""WHERE THE TIME GOES: load and traces of a running server.

May import: client, wire, stages, errors.
"""
