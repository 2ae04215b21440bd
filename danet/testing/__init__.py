"""Checks for the tests of operators, also of operators outside this project: `check_operator`."""

from danet.testing.operator_check import CHECKS, check_operator

__all__ = ["CHECKS", "check_operator"]
