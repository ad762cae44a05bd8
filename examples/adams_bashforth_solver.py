"""A solver of one's own: two-step Adams-Bashforth, of order 2 at one evaluation a step.

genkit check solver adams_bashforth --plugin examples/adams_bashforth_solver.py
"""

from genkit.solvers import SOLVERS, Solver, State


@SOLVERS.register("adams_bashforth")
class AdamsBashforth(Solver):
    """x + h ((1 + r) f(t, x) - r f_before), r = h / (2 h_before); the first step is Euler's."""

    order = 2

    def step(self, field, t, t_next, state, *, generator=None):
        h, slope = t_next - t, field(t, state.x)
        before, h_before = state.memory or (slope, h)  # what is carried lives in the state, not in the solver
        r = h / (2 * h_before)
        return State(state.x + h * ((1 + r) * slope - r * before), (slope, h))
