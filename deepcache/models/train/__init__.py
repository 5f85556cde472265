"""The code that made the embedded models: `python -m deepcache.models.train NAME --data FOLDER`."""
