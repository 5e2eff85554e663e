"""The faces, over a room for each thing that a user does."""
