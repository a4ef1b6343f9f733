"""The runtime type checker of the test run: beartype with the numeric tower (an int is a float)."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
