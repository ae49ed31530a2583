"""Everything that Buttress uses of Ray, Optuna, W&B, torch and botocore beyond their documented interfaces.

One module per library (Ray Train has its own); `tests/test_compat.py` holds a contract test for each name in them.
Nothing in here imports the rest of Buttress.
"""
