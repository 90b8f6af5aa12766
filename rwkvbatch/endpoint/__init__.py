"""An OpenAI-compatible server in place of an engine: HTTP client, bodies and answers, `EndpointEngine`."""
