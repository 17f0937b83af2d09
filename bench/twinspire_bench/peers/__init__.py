"""`twinspire bench peers`: twinspire beside other libraries, each in an environment of its own, on the user's data."""
