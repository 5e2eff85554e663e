"""The page in the browser: a server on this machine, the page, and the processes that read and reconstruct for it."""
