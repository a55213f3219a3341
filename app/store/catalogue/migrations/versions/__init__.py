"""`vNNNN_*.py`: revision `NNNN` makes schema version N of N − 1. What was released is never edited again."""
