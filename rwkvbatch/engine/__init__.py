"""The engine: requests, scheduler, prefix cache and sampling for many concurrent replies of one model."""
