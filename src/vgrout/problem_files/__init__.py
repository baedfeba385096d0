"""Problem files as a user meets them: fetching the public benchmark, checking files, showing problems as the model sees them."""
