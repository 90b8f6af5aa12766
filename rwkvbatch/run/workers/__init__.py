"""Who carries dialogues out: one worker in this process, several processes, or actors of a Ray cluster.

All of them speak one language (`messages`): the driver leases dialogues, workers report finished rows. Only the
driver writes, and a reply depends on its request alone, so it does not matter which worker made a row, or how often.
"""
