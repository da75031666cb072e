"""The public calls that select files, get missing ones and return a Bunch."""
