"""CollapseBench: training curves that were never stopped, with a ground truth that no rule had a part in."""
