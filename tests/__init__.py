"""Tests; the run-time type checker is imported here because the jaxtyping hook looks it up as an attribute."""

from tests import typecheck as typecheck
