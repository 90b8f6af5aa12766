"""The engine: requests, scheduler, prefix cache and sampling, for many replies at once over one model."""
