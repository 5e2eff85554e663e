"""Shared by all tests: every annotated shape and type of the package is checked while they run."""

from __future__ import annotations

from jaxtyping import install_import_hook

import tests.typechecking  # noqa: F401  # the hook looks it up by name

install_import_hook("drr2ct", "tests.typechecking.check")
