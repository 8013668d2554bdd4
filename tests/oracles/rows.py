"""All rows: one file for each kind of algorithm."""

import rows_elementwise
import rows_global
import rows_matrix
import rows_norms
import rows_preconditioned
import rows_wrapped

ROWS = [
    *rows_elementwise.ROWS,
    *rows_global.ROWS,
    *rows_wrapped.ROWS,
    *rows_matrix.ROWS,
    *rows_norms.ROWS,
    *rows_preconditioned.ROWS,
]
