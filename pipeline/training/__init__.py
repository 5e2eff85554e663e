"""What listens to a training, saves it, and goes on with it."""
