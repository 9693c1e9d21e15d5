"""`lgrpo sample`: a problem, a file of them, or a conversation; answers, chains, and the vote."""
