"""Tables, paired statistics, gates and reports over finished runs."""
