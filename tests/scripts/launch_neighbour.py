"""A module beside the scripts, as users have them."""

NAME = "neighbour"
