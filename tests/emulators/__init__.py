"""Real servers that speak a cloud's protocol on this machine, and a proxy that spoils what passes to and from them."""
