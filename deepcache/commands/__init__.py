"""What `python -m deepcache` can do, a file a command: `add` its arguments, `run` it."""
