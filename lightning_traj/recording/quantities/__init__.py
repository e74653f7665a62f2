"""Quantities of the parameters that a trajectory can be of, one module for each kind."""
