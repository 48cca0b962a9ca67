"""Many runs: a spec's runs, their jobs, and Ray, which runs them. sweep.py is the command."""
