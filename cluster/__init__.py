"""Where packs run: any callable over any items, in this process or on Ray."""
