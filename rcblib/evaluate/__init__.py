"""Answer questions from the tokens that survive, score the answers, time what is saved."""
