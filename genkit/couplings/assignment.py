"""The linear assignment problem: the permutation p with the least sum_i C[i, p(i)].

Subtracting a number from a row or a column of C changes no permutation's rank, but the time it takes to find the
best: from costs whose rows and columns have minimum zero, with few pairs near it, SciPy's is some 2 to 9 times
faster than from plain ones. `benchmarks/couplings.py` has the times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from genkit.errors import GenkitError

Method = Literal["auto", "scipy", "pot", "torch"]
SLACK = 1e-7  # of the auction: its mean cost is at most so many times the spread of costs above the optimum


def assign(cost: Tensor, solver: Method = "auto") -> Tensor:
    """C (n, n) -> the column of each row (n,), on the device of C. O(n^3) at worst.

    scipy: shortest augmenting paths (Crouse, https://doi.org/10.1109/TAES.2016.140952), exact, on the CPU.
    pot: network simplex of Python Optimal Transport (https://pythonot.github.io), exact, on the CPU.
    torch: an auction on the device of C, exact up to SLACK.
    auto: scipy, the fastest exact one at all sizes measured.
    Raises GenkitError for POT that is not installed or did not converge.
    """
    cost = cost - cost.amin(0)
    cost -= cost.amin(1, keepdim=True)
    return SOLVERS["scipy" if solver == "auto" else solver](cost)


def by_scipy(cost: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(cost.device)


def by_pot(cost: Tensor) -> Tensor:
    try:
        import ot
    except ImportError:
        raise GenkitError(
            "solver 'pot' needs POT: pip install 'genkit-torch[pot]', or take 'scipy'"
        ) from None
    weights = torch.full((len(cost),), 1 / len(cost), dtype=torch.float64).numpy()
    plan, log = ot.emd(weights, weights, cost.cpu().numpy(), numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise GenkitError(f"solver 'pot' found no plan ({log['warning']}): take solver 'scipy'")
    return torch.from_numpy(plan.argmax(1)).to(cost.device)  # a vertex of uniform plans is a permutation


def by_auction(cost: Tensor) -> Tensor:
    """Rows bid for columns, all at once, each time by so much that they would not mind the second best.

    With bids raised by eps, the mean cost ends at most eps above the optimum; eps falls fivefold from stage to
    stage, prices kept. Bertsekas, https://doi.org/10.1007/BF00247653.
    """
    n = len(cost)
    spread = float(cost.std())
    prices, everyone = cost.new_zeros(n), torch.arange(n, device=cost.device)
    column = everyone.clone()
    eps = spread / 4
    while spread > 0:
        column.fill_(-1)
        owner = torch.full_like(column, -1)
        while len(free := everyone[column < 0]):
            gain, order = torch.topk(-prices - cost[free], 2)
            choice = order[:, 0]
            bid = prices[choice] + gain[:, 0] - gain[:, 1] + eps
            best = torch.full_like(prices, -torch.inf).scatter_reduce_(0, choice, bid, "amax")
            won = bid == best[choice]
            rows, columns, outbid = free[won], choice[won], owner[choice[won]]
            column[outbid[outbid >= 0]] = -1
            owner[columns] = rows
            kept = owner[columns] == rows  # of equal bids for one column, one
            column[rows[kept]] = columns[kept]
            prices[columns] = bid[won]
        if eps <= SLACK * spread:
            break
        eps = max(eps / 5, SLACK * spread)
    return column


SOLVERS: dict[str, Callable[[Tensor], Tensor]] = {"scipy": by_scipy, "pot": by_pot, "torch": by_auction}
