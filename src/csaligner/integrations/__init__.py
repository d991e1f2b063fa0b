"""Doors into other people's trainers; each module stands alone and imports its library only where it must."""
