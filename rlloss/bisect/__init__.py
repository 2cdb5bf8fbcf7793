"""``rlloss bisect``: where two trainings part, to the operation, and why."""
