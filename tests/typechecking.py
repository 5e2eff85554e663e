"""The checker of annotated shapes and types during tests (see pyproject.toml)."""

from beartype import BeartypeConf, beartype

# an int is a float, as in PEP 484
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
