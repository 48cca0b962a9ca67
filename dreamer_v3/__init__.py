"""The parts of DreamerV3 (arXiv 2301.04104) that differ from DreamerV2's. Each is chosen by a setting, see `parts`.

Names of sections are those of the article: "World model learning", "Critic learning", "Actor learning", "Robust
predictions", and of its appendix: "Networks", "Optimizer", "Hyperparameters".
"""
