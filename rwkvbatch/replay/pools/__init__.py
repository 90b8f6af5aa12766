"""Workers in other processes: their messages, the assignment of tasks, and the pools of processes and of Ray actors."""
