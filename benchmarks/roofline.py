"""What this machine can do at most: operations and bytes per second.

The roofline (Williams, Waterman and Patterson, 2009) needs no more: a computation takes at least its operations over
the one and its bytes over the other.
"""

import pandas as pd
import torch

from .measure import take_turns

SIDE = 2048  # of the matrices
NUMBERS = 2**26  # 268 MB in float32, more than caches hold


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """One row: operations per second of a matrix product, bytes per second of reading and of copying."""
    matrix, numbers = torch.randn(SIDE, SIDE, device=device), torch.ones(NUMBERS, device=device)
    copy = torch.empty_like(numbers)
    candidates = {"product": lambda: matrix @ matrix, "read": numbers.sum, "copy": lambda: copy.copy_(numbers)}
    seconds = take_turns(candidates, turns, "roofline").median()
    table = pd.DataFrame(
        {
            "GFLOP/s": [2 * SIDE**3 / seconds["product"] / 1e9],
            "GB/s, reading": [numbers.nbytes / seconds["read"] / 1e9],
            "GB/s, copying": [2 * numbers.nbytes / seconds["copy"] / 1e9],
        }
    )
    print(f"\n{table.round(1).to_string(index=False)}", flush=True)
    return table
