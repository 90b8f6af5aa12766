"""A server with OpenAI's interface over one engine: replies do not depend on what else is served."""
