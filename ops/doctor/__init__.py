"""`shardctl doctor`: looks at the whole cluster and says what is wrong and what to do.

Changes nothing but for `--fix`, which puts right what moves have left (`moves.py`).
"""
