"""One walk over a scene of any size, and what looks at its windows."""
