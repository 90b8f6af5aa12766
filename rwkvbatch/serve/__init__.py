"""A server with OpenAI's interface over one engine: replies do not depend on other requests."""
