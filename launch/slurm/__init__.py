"""A run as a SLURM job: the batch script, its submission, and what each start of the job does."""
