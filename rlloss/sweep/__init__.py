"""Many runs: on this machine's cores, or as the jobs of a Slurm cluster."""
