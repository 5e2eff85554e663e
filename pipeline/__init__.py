"""The pipeline: a room for each thing that a user does, and the faces over them: command line, demonstration."""
