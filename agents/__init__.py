"""The agents: DreamerV2, the source and target agents of CoWorld, and the baselines."""
