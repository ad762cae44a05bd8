"""Solvers of dx/dt = f(t, x), and the time grids they walk."""

from genkit.solvers.base import GRIDS, SOLVERS, Grid, OneStep, Solver, State

__all__ = ["GRIDS", "SOLVERS", "Grid", "OneStep", "Solver", "State"]
