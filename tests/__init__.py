"""Tests; the jaxtyping hook looks the run-time type checker up as an attribute, hence the import."""

from tests import typecheck as typecheck
