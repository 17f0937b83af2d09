"""How fast and how well kinds of index find, beside other libraries, each in a process of its own."""
