"""A mixed index of pictures and texts over LanceDB."""
