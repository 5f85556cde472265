"""This code made the embedded models: `python -m bench.training NAME --data FOLDER`."""
