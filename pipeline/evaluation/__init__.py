"""How reconstructions are judged."""
