"""Other people's trainers, in which the line that computes the policy loss is exchanged, and their runs watched."""
