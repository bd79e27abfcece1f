"""What a worker was doing: gathered from outside and from inside, put into words, and kept."""
